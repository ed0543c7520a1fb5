"""The instruction sets of the native backend, and those that a test can switch to."""

from edgepop_kernels.backend import native

INSTRUCTION_SETS = ["portable", "avx2", "avx512", "avx512bf16", "amx", "neon"]
# Sets that add products of their own, and have all that reads or updates scores from another.
ADD_ONS = {"avx512bf16": "avx512", "amx": "avx512"}


def others() -> list[str]:
    """Those that this machine has, but for the one in use: under that the plain tests run."""
    if native.unavailable() is not None:
        return []
    return [isa for isa in native.compiled.kernels.isas() if isa != native.compiled.kernels.isa()]


def others_for_scores() -> list[str]:
    """Those of them whose selection and optimizer steps are not the ones in use."""
    plain = [isa for isa in others() if isa not in ADD_ONS]
    return [isa for isa in plain if isa != ADD_ONS.get(native.compiled.kernels.isa())]
