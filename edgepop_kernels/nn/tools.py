"""Masked layers among torch's own tools, which do other things to a layer than call it: they work, or say what to do
first.

None of it costs a call of the layer anything: each tool is met at the method through which it comes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from .. import torch_private
from .cuts import Cuts
from .parts import Part

if TYPE_CHECKING:
    from typing_extensions import Self


class _Weight:
    """The weight of a masked layer, for who asks by name; a call of the layer does not.

    What folds branches or a batch norm into it (timm's ``reparameterize_model``, RepVGG's ``switch_to_deploy``) would
    make the mask's zeros weights again.
    """

    def __get__(self, layer: "AmongTools | None", kind: type) -> Any:
        if layer is None:
            return self
        if not torch.compiler.is_compiling() and (reader := torch_private.folded_by()):
            raise RuntimeError(_first(f"weight: {reader} would fold it as it is without its mask"))
        try:
            return layer._parameters["weight"]
        except KeyError:
            if "weight_signs" in layer._buffers:
                return layer._unpacked_weight()
            raise AttributeError(f"{type(layer).__name__!r} object has no attribute 'weight'") from None


class AmongTools(Part):
    """The masked layer as torch.fx, torch.jit, quantization, batch norm folding and nn.DataParallel meet it."""

    weight: nn.Parameter = _Weight()  # type: ignore[assignment]  # nothing but __get__: a replica's tensor goes first

    def requires_grad_(self, requires_grad: bool = True) -> "Self":
        """Sets requires_grad as torch does, but True leaves alone what stands still in this layer by its method: a
        weight that scores mask trains by ``layer.weight.requires_grad_()`` or ``train_weights``."""
        if not requires_grad:
            return super().requires_grad_(False)
        standing = [p for p in self._standing() if p is not None]
        for p in self.parameters():
            if not any(p is s for s in standing):
                p.requires_grad_()
        return self

    def train(self, mode: bool = True) -> "AmongTools":
        """Sets the mode as torch does. Between training and evaluation libraries put averages in the scores' place and
        take them out again, through ``data``, where torch does not count it: no cut from before holds without a look at
        all scores."""
        if mode != self.training:
            self._cuts.known = None
        return super().train(mode)

    def _standing(self) -> list[nn.Parameter | None]:
        """The parameters that do not train in this layer as it is."""
        return [self.scores] if self.rule.fixed else [self._parameters.get("weight")]

    def _in_graph(self, x: torch.fx.Proxy, *how: Any) -> Any:
        """The call of this layer where torch.fx traces the network: one node, as of torch's own layers."""
        tracer: Any = x.tracer
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *how), {})

    def __prepare_scriptable__(self) -> NoReturn:
        raise RuntimeError(_first("torch.jit.script cannot compile masked layers"))

    @property
    def qconfig(self) -> None:
        """The setting of torch.ao.quantization, which masked layers do not take. Raises ValueError when it is set."""
        raise AttributeError("qconfig")

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        # Dynamic quantization hands None to layers of no class that it knows, and leaves them as they are.
        if value is not None or isinstance(self, nn.Linear):
            raise ValueError(_first("qconfig: quantization does not know masked layers"))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Registers as torch does; a batch norm that ``fuse_conv_bn_eval`` folds into the weight leaves the mask as it
        is, and a weight takes the place of packed bits."""
        if torch_private.folds_batch_norm():
            self._before_folding(name)
        if name == "weight" and self._weight_is_packed():
            self._drop_packed()
        super().register_parameter(name, param)

    def _before_folding(self, name: str) -> None:
        """Called before a parameter is replaced by one with a batch norm folded in."""

    def _check_unwrapped(self, what: str) -> None:
        check_unwrapped(what, [self])

    def _replicate_for_data_parallel(self) -> Any:
        """A replica as nn.DataParallel makes it: what the layer remembers of its scores is on one device, and the
        replica's gradient goes to the layer's own scores."""
        if self._updater is not None:
            raise RuntimeError(
                "fused_backward: the replicas of nn.DataParallel have no scores to update in backward; build the "
                "optimizer without fused_backward, or train in several processes (DistributedDataParallel)"
            )
        replica: Any = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]  # as torch has it
        replica.__dict__["_cuts"] = Cuts()
        return replica


def replaced_forward(layer: nn.Module) -> bool:
    """Whether the layer has a forward of its own. accelerate, which sets one, leaves the class's on the instance when
    it takes its hooks off: that is none."""
    own = vars(layer).get("forward")
    return own is not None and getattr(own, "__func__", None) is not type(layer).forward


def check_unwrapped(what: str, layers: Sequence[nn.Module]) -> None:
    """Raises RuntimeError where something that sums gradients over processes holds one of ``layers``: it goes on with
    the parameters that trained when it was made."""
    holder = torch_private.holder_of(layers)
    if holder is None:
        return
    if isinstance(holder, nn.parallel.DistributedDataParallel):
        raise RuntimeError(
            f"{what}: the model is inside DistributedDataParallel, which sums the gradients of what trained when it "
            f"was wrapped; take it out (model = ddp.module; del ddp), call {what}, and wrap it again"
        )
    raise RuntimeError(
        f"{what}: the model is sharded by fully_shard, which sums the gradients of what it sharded; call {what} before "
        "it is sharded, or on a model that is not and has loaded its full state_dict"
    )


def _first(problem: str) -> str:
    return f"{problem}: call edgepop_kernels.materialize(model) first, which makes them torch's own"
