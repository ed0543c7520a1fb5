"""Training recipes: networks, data, the training loop and the command line. Uses the package's public API only.

A method is one file: a subclass of ``config.Recipe`` with its settings and its network, and its ``RECIPES``. Adding it
to ``registry.py`` makes its recipes and its options part of the command line. A setting is declared once, at its field:
default, help, what is allowed, where it has an effect (``when``), its group in the help (``panel``). A method that
compares several trainings is a subclass of ``experiments.Experiment``.

In order of use: ``cli`` (the commands; ``cli_settings`` makes options of settings and shows them, ``cli_recipes`` lists
recipes) -> ``job`` (a run from start to summary) -> ``trainer`` (the loop and the state that resumes it) -> ``data``,
``models``.
"""
