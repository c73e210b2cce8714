"""What a private model must not contain, found before anything runs; every refusal names the module and the way out."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from confide.errors import InputError


def validate(model: nn.Module) -> None:
    """Refuse what cannot be made private by clipping.

    Raises
    ------
    InputError
        Batch normalisation in any form, running statistics, embeddings whose weights or gradients depend on the batch,
        lazy (uninitialised) or complex parameters, no trainable parameter.
    """
    for path, module in model.named_modules():
        _check_module(f"{path or 'the model itself'} ({type(module).__name__})", module)
    trainable = 0
    for name, value in model.named_parameters():
        if isinstance(value, nn.UninitializedParameter):
            raise InputError(
                "a parameter has no shape yet",
                where=name,
                expected="a model whose parameters are all initialised",
                remedy="give the layer its sizes, or run the model once on random inputs first",
            )
        if value.is_complex():
            raise InputError(
                "a parameter is complex",
                where=name,
                expected="real parameters",
                remedy="confide.training.methods.realify(model) keeps them as pairs of real numbers",
            )
        trainable += value.requires_grad
    if not trainable:
        raise InputError("the model has no trainable parameter", remedy="set requires_grad on what shall be learned")


def _check_module(where: str, module: nn.Module) -> None:
    instance = isinstance(module, _InstanceNorm)
    if isinstance(module, _BatchNorm) and not instance:
        width = f"{_groups(module.num_features)}, {module.num_features}" if module.num_features else "32, channels"
        raise InputError(
            "batch normalisation mixes the entries of a batch, so no entry has a gradient of its own",
            where=where,
            expected="normalisation within one entry",
            remedy=f"replace it by nn.GroupNorm({width})",
        )
    if isinstance(module, _NormBase) and module.track_running_stats:
        raise InputError(
            "running statistics keep un-noised averages over private entries in the model",
            where=where,
            expected="normalisation within one entry, without memory",
            remedy=f"set track_running_stats=False, or use nn.GroupNorm({module.num_features}, {module.num_features})",
        )
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        if module.max_norm is not None:
            raise InputError(
                "max_norm rewrites the weights of the entries that were looked up, without noise",
                where=where,
                expected="weights that only the noisy step changes",
                remedy="set max_norm=None",
            )
        if module.scale_grad_by_freq:
            raise InputError(
                "scale_grad_by_freq divides each gradient by counts over the whole batch",
                where=where,
                expected="a gradient of each entry that no other entry changes",
                remedy="set scale_grad_by_freq=False",
            )


def _groups(channels: int) -> int:
    return next(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0 and (g < channels or channels == 1))
