"""Networks as their libraries make them, small, their weights random; and what each does to a conversion."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

import edgepop_kernels as ek


def image(size: int) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"x": torch.randn(3, 3, size, size)}


def tokens(**more: tuple[int, int]) -> Callable[[], dict[str, torch.Tensor]]:
    shapes = {"input_ids": (3, 17), **more}
    return lambda: {name: torch.randint(0, 2 if "mask" in name else 99, shape) for name, shape in shapes.items()}


class Network(NamedTuple):
    """A network of a library, and what convert and its first forward have to say of it.

    build       from the library's module
    inputs      of a forward, by name
    reads       patterns of the layers whose weight its forward reads instead of calling them
    tied        a layer, which is excluded, and the parameter that its weight is
    subclasses  of torch's layers, which convert leaves dense
    """

    library: str
    build: Callable[[Any], nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]
    reads: tuple[str, ...] = ()
    tied: tuple[str, str] | None = None
    subclasses: tuple[str, ...] = ()

    @property
    def exclude(self) -> tuple[str, ...]:
        """Without which convert refuses the network."""
        return () if self.tied is None else self.tied[:1]


def of_torchvision(build, inputs, reads=()):
    return Network("torchvision", lambda library: build(library.models), inputs, reads)


def of_timm(name, inputs, reads=(), subclasses=(), **sizes):
    def build(library):
        return library.create_model(name, num_classes=10, **sizes)

    return Network("timm", build, inputs, reads, subclasses=subclasses)


def of_transformers(name, config, inputs, tied=None, **sizes):
    def build(library):
        return getattr(library, name)(getattr(library, config)(vocab_size=99, bos_token_id=0, eos_token_id=1, **sizes))

    return Network("transformers", build, inputs, tied=tied)


def resnet(models):
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)


def bottlenecks(models):  # resnet50's, one of each size
    return models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10)


def r3d(models):  # r3d_18's blocks, one of each size: convolutions of videos
    video = models.video.resnet
    return video.VideoResNet(video.BasicBlock, [video.Conv3DSimple] * 4, [1, 1, 1, 1], video.BasicStem, num_classes=10)


def mobilenet(models):
    return models.mobilenet_v3_small(num_classes=10)


def convnext(models):
    stages = [models.convnext.CNBlockConfig(24, 48, 2), models.convnext.CNBlockConfig(48, None, 2)]
    return models.ConvNeXt(stages, num_classes=10)


def swin(models):
    return models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], window_size=[4, 4], num_classes=10)


def vit(models):
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=10)


def split_vit(models):
    model = vit(models)
    ek.split_attention(model)
    return model


def resnetv2(timm):
    return timm.models.resnetv2.ResNetV2([1, 1, 1, 1], channels=[128] * 4, num_classes=10, stem_chs=32)


def mask_head(models):  # of Mask R-CNN: a transposed convolution before the last one
    return models.detection.mask_rcnn.MaskRCNNPredictor(in_channels=7, dim_reduced=12, num_classes=5)


QKV = ("*.attn.qkv",)
SWIN = dict(img_size=64, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4)
CONVNEXT = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40))
TRANSFORMER = dict(depth=2, embed_dim=96, num_heads=3)
BERT = dict(hidden_size=36, num_hidden_layers=2, num_attention_heads=3, intermediate_size=57)
LLAMA = BERT | dict(num_key_value_heads=1)
GPT2 = dict(n_positions=32, n_embd=36, n_layer=2, n_head=3)
T5 = dict(d_model=36, d_kv=12, d_ff=57, num_layers=2, num_heads=3, decoder_start_token_id=0)

NETWORKS = {
    "ResNet": of_torchvision(resnet, image(48)),
    "ResNet-50": of_torchvision(bottlenecks, image(48)),
    "R3D": of_torchvision(r3d, lambda: {"x": torch.randn(3, 3, 8, 32, 32)}),
    "MobileNetV3": of_torchvision(mobilenet, image(48)),
    "ConvNeXt": of_torchvision(convnext, image(32)),
    "Swin": of_torchvision(swin, image(32), (*QKV, "*.attn.proj")),
    "ViT": of_torchvision(vit, image(32)),
    "ViT, its attention split": of_torchvision(split_vit, image(32)),
    "Mask R-CNN's head": of_torchvision(mask_head, lambda: {"input": torch.randn(3, 7, 9, 9)}),
    "MobileNetV2": of_timm("mobilenetv2_035", image(48), subclasses=("Conv2dSame",), pad_type="same"),
    "ResNetV2": Network("timm", resnetv2, image(48), subclasses=("StdConv2d",)),
    "NF-ResNet": of_timm("nf_resnet26", image(48), subclasses=("ScaledStdConv2d",), depths=[1, 1, 1, 1]),
    "timm's ViT": of_timm("vit_tiny_patch16_224", image(48), img_size=48, **TRANSFORMER),
    "timm's Swin": of_timm("swin_tiny_patch4_window7_224", image(64), **SWIN),
    "timm's ConvNeXt": of_timm("convnext_atto", image(64), **CONVNEXT),
    "BEiT": of_timm("beit_base_patch16_224", image(48), QKV, img_size=48, **TRANSFORMER),
    "EVA-02": of_timm("eva02_tiny_patch14_224", image(28), QKV, img_size=28, **TRANSFORMER),
    "BERT": of_transformers(
        *("BertForMaskedLM", "BertConfig", tokens(attention_mask=(3, 17))),
        ("cls.predictions.decoder", "bert.embeddings.word_embeddings.weight"),
        **BERT,
    ),
    "GPT-2": of_transformers("GPT2LMHeadModel", "GPT2Config", tokens(), ("lm_head", "transformer.wte.weight"), **GPT2),
    "Llama": of_transformers("LlamaForCausalLM", "LlamaConfig", tokens(), **LLAMA),
    "T5": of_transformers(
        *("T5ForConditionalGeneration", "T5Config", tokens(decoder_input_ids=(3, 5)), ("lm_head", "shared.weight")),
        **T5,
    ),
}
