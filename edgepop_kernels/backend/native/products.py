"""Masked products, each by a plan that is made for the call."""

import torch

from .plan import memory_format, plan_conv2d, plan_linear


def masked_linear(x, weight, scores, cut, of, bias, signs=None):
    return plan_linear(x, weight, scores, of).forward(x, weight, scores, cut, bias, signs=signs)


def masked_linear_dx(dy, weight, scores, cut, of, signs=None):
    x = torch.empty(*dy.shape[:-1], weight.shape[1], dtype=dy.dtype, device="meta")
    return plan_linear(x, weight, scores, of).dx(dy, weight, scores, cut, signs=signs)


def masked_linear_dw(dy, x, weight, scores, cut, of, score_grad, weight_grad, signs=None, score_signs=None):
    plan = plan_linear(x, weight, scores, of)
    return _of_both(weight, *plan.dw(dy, x, weight, scores, cut, score_grad, weight_grad, signs=signs))


def masked_linear_update(dy, x, weight, scores, cut, of, update, weight_grad, signs=None):
    return plan_linear(x, weight, scores, of).update(dy, x, weight, scores, cut, update, weight_grad, signs)


def masked_conv2d(x, weight, scores, cut, of, bias, stride, padding, dilation, groups, channels_last, signs=None):
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups, y_channels_last=channels_last)
    return plan.forward(x, weight, scores, cut, bias, signs=signs)


def masked_conv2d_dx(dy, weight, scores, cut, of, x_size, stride, padding, dilation, groups, channels_last, signs=None):
    x = torch.empty(x_size, dtype=dy.dtype, device="meta", memory_format=memory_format(channels_last))
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups, x_channels_last=channels_last)
    return plan.dx(dy, weight, scores, cut, signs=signs)


def masked_conv2d_dw(
    dy,
    x,
    weight,
    scores,
    cut,
    of,
    score_grad,
    weight_grad,
    stride,
    padding,
    dilation,
    groups,
    signs=None,
    score_signs=None,
):
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups)
    return _of_both(weight, *plan.dw(dy, x, weight, scores, cut, score_grad, weight_grad, signs=signs))


def masked_conv2d_update(
    dy, x, weight, scores, cut, of, update, weight_grad, stride, padding, dilation, groups, signs=None
):
    plan = plan_conv2d(x, weight, scores, of, stride, padding, dilation, groups)
    return plan.update(dy, x, weight, scores, cut, update, weight_grad, signs)


def _of_both(weight, ds, dw):
    """(dS, dW), an empty tensor for the one not asked for."""
    return tuple(weight.new_empty(0) if t is None else t for t in (ds, dw))
