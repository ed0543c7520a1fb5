"""The machine of a run: its device, threads and kernels, and the versions beneath; and where it went on."""

import os
import platform
import subprocess
from pathlib import Path

import torch

import edgepop_kernels as ek

from .config import Recipe
from .errors import UserError
from .parallel import World

# What a resumed run may change. Masks do not depend on these, last bits of products do.
SETTINGS = ("device", "backend", "threads")


def take(recipe: Recipe, world: World) -> torch.device:
    """The device to train on; sets what its results depend on: the thread count, deterministic cuDNN algorithms.
    Raises UserError."""
    name = recipe.device
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device cuda was asked for, but PyTorch finds no GPU here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    torch.backends.cudnn.deterministic = True
    if name == "cpu" or world.size == 1:
        return torch.device(name)
    if world.local_size > torch.cuda.device_count():
        raise UserError(
            f"{world.local_size} processes were started here, one for each GPU, but PyTorch finds "
            f"{torch.cuda.device_count()}: start as many, or add --device cpu"
        )
    torch.cuda.set_device(world.local_rank)
    return torch.device(name, world.local_rank)


def taken(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with what ``take`` has come to in place of what it was left to choose."""
    return recipe.override(device=device.type, threads=torch.get_num_threads())


def backend(recipe: Recipe) -> ek.use_backend:
    """The recipe's backend, as a context. Raises UserError."""
    try:
        return ek.use_backend(recipe.backend)
    except RuntimeError as error:
        raise UserError(str(error)) from error


def environment(device: torch.device, world: World) -> dict:
    """Versions and machine, as config.json has them."""
    on_gpu = device.type == "cuda"
    return {
        "edgepop_kernels": ek.__version__,
        "torch": str(torch.__version__),  # a str of its own kind, which no checkpoint may hold
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        "cores": os.cpu_count(),
        "processes": world.size,
    }


def commit() -> str | None:
    """The commit of the source checkout that this package runs from, with "-dirty" where files differ from it; None for
    an installed copy, or where git is not installed."""
    root = Path(ek.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def moved(recipe: Recipe, cores: int | None) -> Recipe:
    """The recipe of a run that was on a machine of ``cores`` cores, with this machine's choice where it lacks what the
    recipe names. Threads beyond this machine's cores are lacking, unless they are as many too many as before."""
    lacks = {}
    if recipe.device == "cuda" and not torch.cuda.is_available():
        lacks["device"] = "auto"
    if ek.backends().get(recipe.backend) is not None:
        lacks["backend"] = "auto"
    if recipe.threads > os.cpu_count() != cores:
        lacks["threads"] = 0
    return recipe.override(**lacks)


def described(recipe: Recipe, environment: dict) -> dict:
    """All that is to be known of where a run computes; backend: None where nothing is masked."""
    settings = recipe.to_dict()
    return {name: settings.get(name) for name in SETTINGS} | environment


def notes(was: dict, now: dict) -> list[str]:
    """A line on each difference that reaches a run's numbers. Cores do so only as threads."""
    return [
        f"note: {name} was {was.get(name)} and is {here}: the run goes on, but not bit for bit"
        for name, here in now.items()
        if name != "cores" and was.get(name) != here
    ]


def went_on(places: list[dict], here: dict) -> list[dict]:
    """The machines of a run, one after the other, when it goes on here."""
    return places if places and places[-1] == here else [*places, here]


def columns(places: list[dict]) -> dict[str, str]:
    """Kernels and threads for the table of results: all that a run has used, in the order of their first use."""
    values = {
        name: [str(place[name]) for place in places if place[name] is not None] for name in ("backend", "threads")
    }
    return {name: ";".join(dict.fromkeys(used)) for name, used in values.items()}
