"""supsup's checkpoints into a bank: what is of a task by its number, the rest as of any network."""

import re
from typing import TYPE_CHECKING

from ..interop.containers import Content, plain_name
from ..interop.load import Loaded, load_into
from . import state

if TYPE_CHECKING:
    from .bank import MaskBank

_SCORES, _NORM = re.compile(r"^(.*?)\.?scores\.(\d+)$"), re.compile(r"^(.*)\.bns\.(\d+)\.(\w+)$")


def load(bank: "MaskBank", content: Content) -> Loaded:
    """``load_checkpoint`` of a bank. Tasks are those of the checkpoint, the first in use, where it has any."""
    tasks: dict[int, state.State] = {}
    read_as: dict[str, str] = {}
    others, caches = {}, []
    for theirs, value in content.entries.items():
        name = plain_name(theirs)
        scores, norm = _SCORES.match(name), _NORM.match(name)
        if scores is not None:
            number, inner = int(scores[2]), state.join(scores[1], "scores")
        elif norm is not None:
            number, inner = int(norm[2]), f"{norm[1]}.{norm[3]}"
        elif name.rpartition(".")[2] == "stacked":  # the masks of these scores, cached
            caches.append(theirs)
            continue
        else:
            others[theirs] = value
            continue
        tasks.setdefault(number, {})[inner] = value
        read_as[theirs] = f"tasks.{number}.{inner}"
    found = [state.place(bank.model, bank._layers, {**bank._first, **task}) for _, task in sorted(tasks.items())]
    wrong = [f"tasks.{n}: the checkpoint has no such task" for n in range(len(tasks)) if n not in tasks]
    for number, task in enumerate(found):
        wrong += [f"tasks.{number}.{line}" for line in state.problems(task, bank.model, bank._layers, bank._beside)]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(f"model: the checkpoint does not fit; {'; '.join(wrong[:4])}{more}")
    bank.unmix()
    loaded = load_into(bank.model, content._replace(entries=others))
    if found:
        bank._take_tasks(found)
    of_tasks = {state.join(name, "scores") for name in bank._layers} | {*bank._beside} if found else set[str]()
    read_as |= loaded.read_as
    return Loaded(
        {theirs: read_as[theirs] for theirs in content.entries if theirs in read_as},
        tuple(name for name in loaded.missing if name not in of_tasks and not name.endswith("_extra_state")),
        loaded.left,
        (*loaded.beside, *caches),
    )
