"""TorchScript files: what is in them is looked at before PyTorch loads them.

PyTorch compiles the code of such a file while it loads it, and runs parts of it then. That code may call whatever is
registered with PyTorch: `torch.save` writes over any file, `torch.from_file` maps one, and other operators read, write
and send. So only code that computes with tensors is let through: each operator that is named in it must be on a list.
"""

from __future__ import annotations

import functools
import io
import re
import zipfile
from pathlib import Path

import torch

from utils.weights.reader import ZIP_MAGIC, UnsafeCheckpointError

# Operators that a detection network may use, `torch.NAME` in the code. For `add` also `add_`, which works in place.
# Not on it: what takes a path or a text to run, memory without bounds or content (set_, resize_, empty, _unsafe_*),
# random numbers' seeds, threads, devices' state, other processes.
_TENSOR_OPERATORS = """
Bool Float FloatImplicit Int IntImplicit ScalarImplicit __and__ __getitem__ __is__ __isnot__ __not__ __or__ append
dim item items keys len list numel size device is_floating_point stride values

abs absolute add addcdiv addcmul addmm addmv atan atan2 baddbmm bmm ceil clamp clamp_max clamp_min clip cos cosh
cumprod cumsum div divide dot einsum eq erf exp exp2 expm1 floor floor_divide floordiv fmod ge greater
greater_equal gt isfinite isinf isnan le less less_equal lerp log log10 log1p log2 logical_and logical_not
logical_or logical_xor logit lt masked_fill matmul maximum minimum mm mul multiply mv nan_to_num ne neg negative
norm not_equal outer positive pow prod reciprocal relu6 remainder round rsqrt rsub sign sin sinh sqrt square sub
subtract sum tan true_divide trunc where xlogy

all amax amin any argmax argmin argsort frobenius_norm logsumexp max mean median min sort std std_mean topk var
var_mean

alias broadcast_tensors broadcast_to cat chunk clone concat concatenate constant_pad_nd contiguous copy detach
diagonal dstack expand expand_as flatten flip gather hstack im2col col2im index index_put index_select masked_select
meshgrid movedim moveaxis narrow numpy_T pad permute pixel_shuffle pixel_unshuffle repeat repeat_interleave reshape
reshape_as roll rot90 select slice split split_with_sizes squeeze stack swapaxes swapdims t take tensor_split tile
to transpose tril triu type_as unbind unflatten unfold unsqueeze view view_as vstack

arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor tensor zeros zeros_like

_convolution _convolution_mode conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
bilinear cosine_similarity embedding linear pairwise_distance scaled_dot_product_attention

adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices max_pool3d
affine_grid_generator channel_shuffle grid_sampler grid_sampler_2d upsample_bicubic2d upsample_bilinear2d
upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
_upsample_nearest_exact2d

batch_norm group_norm instance_norm layer_norm local_response_norm native_batch_norm native_group_norm
native_layer_norm rms_norm alpha_dropout dropout feature_alpha_dropout feature_dropout

celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax mish prelu relu rrelu
selu sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink threshold
"""
TENSOR_OPERATORS = frozenset(_TENSOR_OPERATORS.split())
# `ops.NAMESPACE.NAME`; `prepacked` is what YOLOv5's --optimize makes of convolutions for phones
OTHER_OPERATORS = {
    "prim": {"NumToTensor", "device", "dtype", "is_cuda", "max", "min", "unchecked_cast"},
    "prepacked": {"conv2d_clamp_run", "conv2d_transpose_clamp_run", "linear_clamp_run"},
    "torchvision": {"nms"},
}
# These take or run something by its name, or run when an object is read
NOT_IN_TENSOR_CODE = re.compile(r"(?<!\w)(getattr|hasattr|print|fork|awaitable|__getstate__|__setstate__)(?!\w)")
# what `prepacked` works with, as code and pickles write it
CLASSES = re.compile(r"torch\.classes\.xnnpack(?:\.|\n)(?:Conv2d|TransposeConv2d|Linear)OpContext(?!\w)")
NUMBERED = re.compile(r'(?<!\w)getattr\(([\w.]+), "\d+"\)')  # a layer of a Sequential
AFTER_A_DOT = re.compile(r"\.\s*([A-Za-z_]\w*)")
OPS = re.compile(r"(?<![\w.])ops(?!\w)(?:\.(\w+)\.(\w+))?")
UNWRITTEN = re.compile(r"[^\n\x20-\x7e]|[\\#]")  # PyTorch writes none of it, and names could hide behind it
CODE_LIMIT = 32 << 20  # bytes; networks have less than a hundredth of it


def read_tensor_code(path: Path) -> io.BytesIO:
    """A TorchScript file for `torch.jit.load`, with the entries alone that were looked at here.

    PyTorch is given this copy and not the file, so that both see the same entries.

    Raises:
        UnsafeCheckpointError: The code does more than computing with tensors; the message says what was found.
        ValueError: It is no TorchScript file.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                raise ValueError("it does not begin as a zip archive")
            with zipfile.ZipFile(file) as archive:
                return _checked_copy(archive, path.stat().st_size)
    except UnsafeCheckpointError as e:
        raise UnsafeCheckpointError(f"{path}: {e}") from None
    except OSError:
        raise
    except Exception as e:  # a damaged archive may raise anything
        raise ValueError(f"{path}: no TorchScript file that can be read ({str(e) or type(e).__name__})") from e


def refuse_other_code(code: str, name: str) -> None:
    """Raises UnsafeCheckpointError where the text of a code entry names more than operators on tensors.

    What is text within quotes is looked at as if it were code, so nothing depends on where a text ends.
    """
    rest = CLASSES.sub(" ", NUMBERED.sub(r" \1 ", code))
    found = NOT_IN_TENSOR_CODE.findall(rest)
    found += [
        ".".join(filter(None, ("ops", *m.groups())))
        for m in OPS.finditer(rest)
        if m[2] not in OTHER_OPERATORS.get(m[1], ())
    ]
    allowed = TENSOR_OPERATORS.union(*OTHER_OPERATORS.values())
    for m in AFTER_A_DOT.finditer(rest):
        word = m[1]
        known = word in allowed or (word.endswith("_") and word[:-1] in allowed)
        if word == "classes" or (not known and word in _operators()):
            before = re.search(r"\w*$", rest[: m.start()].rstrip())
            found.append(f"{before[0]}.{word}")
    found += [f"character {ascii(c)}" for c in UNWRITTEN.findall(code)]
    if found:
        what = ", ".join(f"`{f}`" for f in list(dict.fromkeys(found))[:3])
        raise UnsafeCheckpointError(
            f"refused, because its code ({name}) contains {what}: a detection network needs no such thing, and it could"
            " write files or run other code. Nothing was executed"
        )


@functools.cache
def _operators() -> frozenset[str]:
    """Names, without the namespace, of every operator that TorchScript code can call in this process."""
    return frozenset(schema.name.split("::")[-1] for schema in torch._C._jit_get_all_schemas())


def _checked_copy(archive: zipfile.ZipFile, size: int) -> io.BytesIO:
    entries = archive.NameToInfo  # of two entries of one name the one that is read
    root = next(iter(entries), "").split("/", 1)[0]
    if not {f"{root}/data.pkl", f"{root}/constants.pkl"} <= set(entries):
        raise ValueError("it lacks the entries of a TorchScript archive")
    kept = {}
    for name, info in entries.items():
        inner = name.removeprefix(f"{root}/")
        is_code = re.fullmatch(r"code/[\w/.]+\.py", inner) is not None
        is_data = inner in ("data.pkl", "constants.pkl", "version", ".data/version", "byteorder", "extra/config.txt")
        if is_code or is_data or re.fullmatch(r"(data|constants)/[\w.]+", inner):
            kept[inner] = info
            if not is_code and info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry {inner} is compressed, which PyTorch does not do")
    code = {inner: info for inner, info in kept.items() if inner.startswith("code/")}
    if sum(i.file_size for i in code.values()) > CODE_LIMIT:
        raise ValueError(f"more than {CODE_LIMIT >> 20} MiB of code")
    if sum(i.file_size for inner, i in kept.items() if inner not in code) > size:
        raise ValueError("entries larger than the file")
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as out:
        for inner, info in kept.items():
            content = archive.read(info)
            if inner in code:
                refuse_other_code(content.decode("latin1"), inner)
            elif inner.endswith(".pkl"):
                _refuse_other_objects(content.decode("latin1"), inner)
            out.writestr(f"archive/{inner}", content)
    copy.seek(0)
    return copy


def _refuse_other_objects(pickled: str, name: str) -> None:
    """Raises UnsafeCheckpointError where a pickle names objects of C++ libraries, which run code when they are read."""
    rest = CLASSES.sub(" ", pickled)
    for what in ("torch.classes", "torch.distributed"):
        if what in rest:
            raise UnsafeCheckpointError(
                f"refused, because {name} in it names `{what}`: a detection network needs no such thing, and it could"
                " run code. Nothing was executed"
            )
