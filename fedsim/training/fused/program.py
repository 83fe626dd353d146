"""The step of a group: the layers of a module built over stacked parameters, for a number of slots.

Shapes: `G` slots, `g` slots at work, `B` batch, `P` parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from fedsim.layout import Layout
from fedsim.training.fused import ahead, convolution, layers, linear, lookup, norm, pointwise, pooled, tape
from fedsim.training.fused.graph import Add, Node, TokenMean, Tokens, UnsupportedError
from fedsim.training.fused.layers import Layer, Recordable, converted, flattened, in_blocks
from fedsim.training.fused.losses import CompiledCrossEntropy, FusedLoss
from fedsim.training.fused.memory import Places
from fedsim.training.fused.values import Context, Form, Memory, Value
from fedsim.training.groupbatches import Batch

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
Builder = Callable[[Context, str, Node, Sequence[Value], list[Layer]], Value]


class Program:
    """Forward and backward pass of `ctx.n_slots` clients; each call is one step on the batch that `x` is set to."""

    def __init__(
        self,
        ctx: Context,
        nodes: Sequence[Node],
        sample_shape: tuple[int, ...],
        loss: Callable[[Context, Value], FusedLoss],
    ) -> None:
        self._input = Memory(needs_grad=False, is_fixed=True)
        self._input.is_flat, self._input.is_kept, self._input.is_given = False, True, True
        built: list[Layer] = []
        values = [[Value(Form.SAMPLES, sample_shape, self._input)]]
        n_readers = Counter(i for node in nodes for i in node.inputs)
        _spread(ctx, "samples", values[0], n_readers[0], built)
        for i, node in enumerate(nodes, 1):
            y = _BUILDERS[type(node.layer)](ctx, f"{i}", node, [values[j].pop(0) for j in node.inputs], built)
            values.append([y])
            _spread(ctx, f"{i}", values[i], n_readers[i], built)
        y = converted(ctx, "outputs", values[-1][0], Form.ROWS, built)
        if not y.m.is_flat or y.m.is_kept:
            copy = layers.Convert(ctx, "outputs copied", y, Form.ROWS)
            built.append(copy)
            y = copy.y
        self._loss = loss(ctx, y)
        self._built = built
        self._work = self._recorded(ctx)
        only = self._work[0] if len(self._work) == 1 else None
        self.whole = only if isinstance(only, tape.Tape) else None  # where a step is nothing but a tape

    def _recorded(self, ctx: Context) -> list[Callable[[Batch], None]]:
        """What a step consists of, in order; compiled operations that follow one another are one tape."""
        forward: list[Callable[[Batch], None] | list[tape.Row]] = []
        backward = list(forward)
        for layer in self._built:
            rows = layer.rows() if isinstance(layer, Recordable) else None
            forward.append(rows[0] if rows else partial(_called, layer.forward))
            backward.insert(0, rows[1] if rows else partial(_called, layer.backward))
        loss = self._loss
        between = loss.rows() if isinstance(loss, CompiledCrossEntropy) else lambda batch: loss.step(*batch.columns)
        return tape.recorded(ctx, [*forward, between, *backward])

    def step(self, batch: Batch) -> None:
        """One forward and backward pass; gradients go to the target that the program was built with."""
        self._input.full, self._input.t = batch.x_gBF, batch.samples_gBF
        for part in self._work:
            part(batch)

    def forget(self) -> None:
        """Lets go of tensors that are in no fixed memory."""
        for layer in self._built:
            layers.forget(layer)


def _called(work: Callable[[], None], batch: Batch) -> None:
    """Work that knows where its numbers are."""
    work()


def _spread(ctx: Context, name: str, values: list[Value], n_readers: int, built: list[Layer]) -> None:
    """Makes as many values of the one in `values` as there are readers."""
    if n_readers > 1:
        fork = layers.Fork(ctx, name, values[0], n_readers)
        built.append(fork)
        values[:] = fork.branches


# ------------------------------------------------------------------------------------- builders of layers


def _prefix(node: Node) -> str:
    return f"{node.name}." if node.name else ""


def _build_linear(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.Linear)
    layer: linear.Linear | linear.CompiledLinear | ahead.LinearAhead
    if ctx.ahead is not None and ctx.ahead.prefix == _prefix(node):
        layer = ahead.LinearAhead(ctx, name, node.layer, ctx.ahead)
    else:
        x = converted(ctx, f"{name} in", inputs[0], Form.ROWS, built)
        kind = linear.CompiledLinear if linear.is_compiled(ctx, x) else linear.Linear
        layer = kind(ctx, name, node.layer, x, _prefix(node))
    built.append(layer)
    return layer.y


def _build_conv(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.Conv2d)
    x = converted(ctx, f"{name} in", inputs[0], Form.MAPS, built)
    layer = convolution.Conv2d(ctx, node.layer, x, _prefix(node), node.shape)
    built.append(layer)
    return layer.y


def _build_first(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, pooled.FirstMaps)
    layer = pooled.First(ctx, name, node.layer, inputs[0], _prefix(node), node.shape)
    built.append(layer)
    return layer.y


def _build_pooled(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, pooled.PooledMaps)
    x = converted(ctx, f"{name} in", inputs[0], Form.MAPS, built)
    layer = pooled.Pooled(ctx, name, node.layer, x, _prefix(node), node.shape)
    built.append(layer)
    return layer.y


def _build_max_pool(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.MaxPool2d)
    x = converted(ctx, f"{name} in", inputs[0], Form.MAPS, built)
    layer: convolution.MaxPool2d | convolution.RectifiedMaxPool2d
    if isinstance(node.layer, convolution.Rectified):
        layer = convolution.RectifiedMaxPool2d(ctx, name, node.layer, x, node.shape)
    else:
        layer = convolution.MaxPool2d(ctx, node.layer, x, node.shape)
    built.append(layer)
    return layer.y


def _build_average_pool(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.AvgPool2d | nn.AdaptiveAvgPool2d)
    x = converted(ctx, f"{name} in", inputs[0], Form.MAPS, built)
    layer = convolution.AveragePool2d(ctx, node.layer, x, node.shape)
    built.append(layer)
    return layer.y


def _build_adaptive_max_pool(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    x = converted(ctx, f"{name} in", inputs[0], Form.MAPS, built)
    layer = convolution.AdaptiveMaxPool2d(x, node.shape)
    built.append(layer)
    return layer.y


def _build_group_norm(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.GroupNorm)
    x = converted(ctx, f"{name} in", inputs[0], Form.MAPS, built)
    layer = norm.GroupNorm(ctx, node.layer, x, _prefix(node))
    built.append(layer)
    return layer.y


def _build_layer_norm(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.LayerNorm)
    x = converted(ctx, f"{name} in", inputs[0], Form.ROWS, built)
    layer = norm.LayerNorm(ctx, name, node.layer, x, _prefix(node))
    built.append(layer)
    return layer.y


def _build_gelu(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.GELU)
    layer = pointwise.Gelu(ctx, name, node.layer, in_blocks(ctx, f"{name} in", inputs[0], built))
    built.append(layer)
    return layer.y


def _build_tanh(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    layer = pointwise.Tanh(ctx, name, in_blocks(ctx, f"{name} in", inputs[0], built))
    built.append(layer)
    return layer.y


def _build_relu(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    layer = pointwise.Relu(ctx, name, flattened(ctx, f"{name} in", inputs[0], built))
    built.append(layer)
    return layer.y


def _build_dropout(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, DROPOUTS)
    if node.layer.p == 0.0:
        return _build_reshape(ctx, name, node, inputs, built)
    n_before = sum(isinstance(layer, pointwise.Dropout) for layer in built)
    layer = pointwise.Dropout(ctx, name, inputs[0], ctx.masks[n_before][: ctx.n_slots])
    built.append(layer)
    return layer.y


def _build_embedding(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    assert isinstance(node.layer, nn.Embedding)
    layer = lookup.Embedding(ctx, name, node.layer, inputs[0], _prefix(node))
    built.append(layer)
    return layer.y


def _build_token_mean(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    layer = lookup.TokenMean(ctx, name, converted(ctx, f"{name} in", inputs[0], Form.ROWS, built))
    built.append(layer)
    return layer.y


def _build_sum(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    a, b = (flattened(ctx, f"{name} in {i}", x, built) for i, x in enumerate(inputs))
    layer = pointwise.Sum(ctx, name, a, converted(ctx, f"{name} form", b, a.form, built))
    built.append(layer)
    return layer.y


def _build_reshape(ctx: Context, name: str, node: Node, inputs: Sequence[Value], built: list[Layer]) -> Value:
    """Flatten, Unflatten, Identity and the like: another shape, or another type, for the same samples."""
    x = inputs[0]
    if node.shape == x.shape:
        return x
    x = converted(ctx, f"{name} in", x, Form.SAMPLES, built)
    return Value(Form.SAMPLES, node.shape, x.m)


_BUILDERS: dict[type[nn.Module], Builder] = {
    nn.Linear: _build_linear,
    nn.Conv2d: _build_conv,
    pooled.FirstMaps: _build_first,
    pooled.PooledMaps: _build_pooled,
    nn.MaxPool2d: _build_max_pool,
    convolution.Rectified: _build_max_pool,
    nn.AvgPool2d: _build_average_pool,
    nn.AdaptiveAvgPool2d: _build_average_pool,
    nn.AdaptiveMaxPool2d: _build_adaptive_max_pool,
    nn.GroupNorm: _build_group_norm,
    nn.LayerNorm: _build_layer_norm,
    nn.ReLU: _build_relu,
    nn.GELU: _build_gelu,
    nn.Tanh: _build_tanh,
    nn.Dropout: _build_dropout,
    nn.Dropout1d: _build_dropout,
    nn.Dropout2d: _build_dropout,
    nn.Embedding: _build_embedding,
    Tokens: _build_reshape,
    TokenMean: _build_token_mean,
    Add: _build_sum,
    nn.Flatten: _build_reshape,
    nn.Unflatten: _build_reshape,
    nn.Identity: _build_reshape,
}


_JOINED = (pooled.FirstMaps, pooled.PooledMaps)
_ON_MAPS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.GroupNorm, *_JOINED)

# ------------------------------------------------------------------------------------- what can be built


def check(nodes: Sequence[Node], layout: Layout) -> None:
    """Raises UnsupportedError for the first layer that has no fused form."""
    used = Counter(name for node in nodes for name in parameter_names(node))
    for node in nodes:
        reason = _reason(node) or _reason_of_tokens(node, nodes)
        if reason is None and any(used[name] > 1 for name in parameter_names(node)):
            reason = "it is used more than once"
        if reason is None and any(not p.requires_grad for p in node.layer.parameters()):
            reason = "it has parameters that are not trained"
        if reason is not None:
            raise UnsupportedError(f"{node.title}: {reason}")
    outside = [name for name in layout.names if name not in used]
    if outside:
        raise UnsupportedError(f"parameter '{outside[0]}' belongs to no layer")
    if len(nodes[-1].shape) != 1:
        raise UnsupportedError(f"{nodes[-1].title}: the module's output has the shape {nodes[-1].shape}, not a vector")


def parameter_names(node: Node) -> list[str]:
    """The names of a node's own parameters in the module."""
    return [_prefix(node) + name for name, _ in node.layer.named_parameters()]


def _reason(node: Node) -> str | None:
    """Why a node cannot be fused, or None."""
    layer = node.layer
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return "its statistics would count the padding of short batches; use GroupNorm or LayerNorm"
    if type(layer) not in _BUILDERS:
        return "it has no fused form"
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return f"padding_mode='{layer.padding_mode}', padding={layer.padding!r}; give zeros and numbers"
    if isinstance(layer, nn.MaxPool2d | nn.AdaptiveMaxPool2d) and layer.return_indices:
        return "it returns indices"
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) > 1:
        return "it normalises over more than the last axis"
    if isinstance(layer, _ON_MAPS) and len(node.shape) != 3:
        return f"its output has the shape {node.shape}, not (channels, height, width)"
    return None


def _reason_of_tokens(node: Node, nodes: Sequence[Node]) -> str | None:
    """Why a node that is about tokens cannot be fused, or None: tokens are samples, and only embeddings take them."""
    layer = node.layer
    kinds = [type(nodes[i - 1].layer) if i else None for i in node.inputs]
    if isinstance(layer, nn.Embedding):
        if layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse:
            return "max_norm, scale_grad_by_freq and sparse have no fused form"
        return None if kinds == [Tokens] else "it does not take the samples themselves, as whole numbers (x.long())"
    if Tokens in kinds:
        return "it takes whole numbers, which only embeddings have a fused form for"
    if isinstance(layer, Tokens) and kinds != [None]:
        return "only the samples themselves can be made whole numbers"
    return None


def has_maps(nodes: Sequence[Node]) -> bool:
    """Whether images are kept as maps, which takes two slots at least."""
    return any(isinstance(node.layer, _ON_MAPS) for node in nodes)


def places_of(nodes: Sequence[Node], layout: Layout, names: Sequence[str] | None = None) -> Places:
    """Where the parameters lie, all or those named: the rows of linear weights and of embeddings are padded."""
    in_rows = [f"{_prefix(node)}weight" for node in nodes if isinstance(node.layer, nn.Linear | nn.Embedding)]
    return Places(layout, in_rows, names)
