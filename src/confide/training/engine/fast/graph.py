"""What is done to the traced step before it is compiled; none of it changes a result beyond rounding.

`simplify` finds that two computations are one. `channels_last` drops copies that only eager kernels need. `decompose`
opens the backward pass of group normalisation, whose inner sums are the very gradients of single entries that its
scale and shift need, so that nothing is read twice. `recompute` lets PyTorch's min-cut partitioner choose what is
kept for the backward pass and what is cheaper to compute again, as it does for ordinary training. `realise` keeps the
compiler from making one copy twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
_SAME = (aten.detach.default, aten.alias.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_NORMS = (aten.native_group_norm.default, aten.native_group_norm_backward.default)


def _shape(node: Any) -> torch.Size | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value.shape if isinstance(value, Tensor) else None


def _identity(node: fx.Node) -> bool:
    """True for permutations that move nothing and for slices of the whole."""
    if node.target == aten.permute.default:
        return list(node.args[1]) == sorted(node.args[1])  # type: ignore[arg-type]
    return node.target == aten.slice.Tensor and _shape(node) is not None and _shape(node) == _shape(node.args[0])


def simplify(module: fx.GraphModule) -> fx.GraphModule:
    """Merge equal computations, seeing through reshapes that lead back to a shape that was there before."""
    graph = module.graph  # a module writes and compiles its code anew for every graph it is given: once is enough
    for _ in range(2):
        for node in list(graph.nodes):
            if node.target in _SAME or _identity(node):
                node.replace_all_uses_with(node.args[0])
            elif node.target in _VIEWS:
                base = node.args[0]
                while isinstance(base, fx.Node) and _shape(base) != _shape(node) and base.target in (*_VIEWS, *_SAME):
                    base = base.args[0]
                if _shape(base) is not None and _shape(base) == _shape(node):
                    node.replace_all_uses_with(base)
        graph.eliminate_dead_code()
        graph = fx_graph_cse(graph)
    module.graph = graph
    module.graph.lint()
    return module


def channels_last(module: fx.GraphModule) -> fx.GraphModule:
    """Drop the copies to channels-first that eager group normalisation makes on CUDA; the compiler's needs none."""
    for node in list(module.graph.nodes):
        if node.target == aten.view.default:
            node.target = aten.reshape.default  # a view of the copy may not be one of the original
        if node.target == aten.clone.default and node.kwargs.get("memory_format") == torch.contiguous_format:
            for user in list(node.users):
                if user.target in _NORMS:
                    user.replace_input_with(node, node.args[0])
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return module


def decompose(module: fx.GraphModule, values: Sequence[Tensor]) -> fx.GraphModule:
    """Open composite operations as the compiler would, so that their parts can be merged, kept or computed again."""
    from torch._inductor.decomposition import select_decomp_table

    table = {**select_decomp_table(), _NORMS[1]: _group_norm_backward}
    with torch.no_grad():
        # without writing in place: what follows takes every value for what it was when it was made
        pure = torch.func.functionalize(module, remove="mutations")
        trace = make_fx(pure, decomposition_table=table, tracing_mode="fake", _allow_non_fake_inputs=True)
        return trace(*values)


def _group_norm_backward(grad: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor | None, ...]:
    """PyTorch's own decomposition, with results in the precision that the operation itself gives."""
    found = get_decompositions([_NORMS[1]])[_NORMS[1]](grad, value, *rest)
    scale = rest[2]
    kinds = (value.dtype, *(2 * [value.dtype if scale is None else scale.dtype]))
    return tuple(None if v is None else v.to(kind) for v, kind in zip(found, kinds, strict=True))


def recompute(module: fx.GraphModule, forward: int) -> fx.GraphModule:
    """Choose what the backward pass computes again.

    Parameters
    ----------
    module : GraphModule
        Its first output are the losses; its first `forward` inputs are those of the forward pass.
    forward : int

    Returns
    -------
    GraphModule
        The two halves as one graph; `module` itself where this version of PyTorch cannot split it, or where something
        writes in place: the partitioner loses such writes in the backward pass without a word, and with them the norms
        that clip.
    """
    if any(_writes(node) for node in module.graph.nodes):
        return module
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    joint = fx.GraphModule(module, fx.graph.Graph())
    joint.graph.output(joint.graph.graph_copy(module.graph, {}))
    for number, node in enumerate([n for n in joint.graph.nodes if n.op == "placeholder"]):
        node.target = node.name = f"primals_{number}" if number < forward else f"tangents_{number}"
    joint.recompile()
    try:
        halves = min_cut_rematerialization_partition(joint, None, num_fwd_outputs=1)
        return _joined(module, *halves)
    except Exception:  # an interface of PyTorch that its makers call experimental: without it only memory is lost
        return module


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _joined(module: fx.GraphModule, first: fx.GraphModule, second: fx.GraphModule) -> fx.GraphModule:
    graph, known = fx.Graph(), {}
    names = [node.name for node in module.graph.nodes if node.op == "placeholder"]
    wanted = [n for half in (first, second) for n in half.graph.nodes if n.op == "placeholder"]
    by_number = {int(n.name.split("_")[1]): n for n in wanted if n.name.startswith(("primals_", "tangents_"))}
    for number, name in enumerate(names):
        known[by_number[number].name if number in by_number else name] = graph.placeholder(name)
    outputs: list[Any] = []
    for half in (first, second):
        inside: dict[fx.Node, fx.Node] = {}
        for node in half.graph.nodes:
            if node.op == "placeholder":
                inside[node] = known[node.name]
            elif node.op == "output":
                found: Any = node.args[0]
                outputs.append(inside[found[0]] if half is first else [inside[n] for n in found])
            else:
                inside[node] = graph.node_copy(node, inside.__getitem__)
                if half is first:
                    known[node.name] = inside[node]
    graph.output([outputs[0], *outputs[1]])
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(module, graph)


def realise(module: fx.GraphModule) -> fx.GraphModule:
    """Let copies that both a kernel of ours and something else read be made once, not once for each reader."""
    import torch._inductor.inductor_prims  # registers the operation

    for node in list(module.graph.nodes):
        if node.target != aten.clone.default or not isinstance(node.meta.get("val"), Tensor):
            continue
        readers = _readers(node)
        if len(readers) > 1 and any(getattr(r.target, "namespace", "") == "confide" for r in readers):
            with module.graph.inserting_after(node):
                strides = list(node.meta["val"].stride())
                held = module.graph.call_function(torch.ops.prims.inductor_force_stride_order.default, (node, strides))
            held.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(held, delete_user_cb=lambda user, held=held: user is not held)
    module.graph.lint()
    module.recompile()
    return module


def _readers(node: fx.Node) -> list[fx.Node]:
    """Whatever reads a node, looking through views."""
    found = []
    for user in node.users:
        view = user.target in (*_VIEWS, *_SAME, aten.permute.default, aten.t.default, aten.transpose.int)
        found += _readers(user) if view else [user]
    return found


def peak(module: fx.GraphModule) -> int:
    """Most bytes of intermediate tensors that are alive at once if every node is run in order (views are free)."""
    nodes = list(module.graph.nodes)
    base: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for place, node in enumerate(nodes):
        view = node.target in (*_VIEWS, *_SAME, aten.permute.default, aten.t.default, aten.transpose.int)
        source = node.args[0] if view else None
        base[node] = base.get(source, source) if isinstance(source, fx.Node) else node
        for parent in node.all_input_nodes:
            last[base.get(parent, parent)] = place
    alive = most = 0
    ends: dict[int, list[fx.Node]] = {}
    for node, place in last.items():
        ends.setdefault(place, []).append(node)
    for place, node in enumerate(nodes):
        if node.op == "call_function" and base[node] is node:
            alive += _bytes(node)
        most = max(most, alive)
        alive -= sum(_bytes(gone) for gone in ends.get(place, []) if gone.op == "call_function")
    return most


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0
