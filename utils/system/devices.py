"""Devices: which one, in which precision and memory layout, on how many threads, across how many processes."""

from __future__ import annotations

import contextlib
import datetime
import functools
import inspect
import os
import platform
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from utils.system import machine
from utils.system.arguments import AMP_CHOICES
from utils.system.machine import core_count, keep_freed_memory

try:
    import resource
except ImportError:  # Windows
    resource = None


def select_device(device: str = "", batch_size: int = 0) -> torch.device:
    """Turn a `--device` text into a device.

    Args:
        device: `"cpu"`, `"mps"`, `"0"`, `"0,1"` (this process takes the one of its local rank), `"cuda:0"`, or `""` for
            the best there is (CUDA, then Apple's MPS, then the processor).
        batch_size: Checked to be a multiple of the number of devices when several are named; 0 skips the check.

    Raises:
        ValueError: The device does not exist here, or the batch does not divide among the devices.
    """
    name = str(device).strip().lower().replace("cuda:", "").replace("none", "")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("--device mps: this machine has no Apple GPU that PyTorch can use; try --device cpu")
        return torch.device("mps")
    if name:
        ids = device_ids(name)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if max(ids) >= count:
            raise ValueError(
                f"--device {device}: PyTorch sees {count} CUDA device(s) here; use --device cpu, or leave it "
                "empty for the best device there is"
            )
        if batch_size > 0 and batch_size % len(ids):
            raise ValueError(
                f"--batch-size {batch_size} is not a multiple of the {len(ids)} devices in --device {device}"
            )
        return torch.device("cuda", ids[local_rank() % len(ids)])
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_ids(device: str) -> list[int]:
    """CUDA ids named in a `--device` text: `"0,1"` → `[0, 1]`, `"cpu"` → `[]`."""
    name = str(device).strip().lower().replace("cuda:", "")
    if name in ("", "cpu", "mps", "none"):
        return []
    ids = [x.strip() for x in name.split(",") if x.strip()]
    if not ids or not all(x.isdecimal() for x in ids):
        raise ValueError(f"--device {device}: expected cpu, mps, a CUDA id such as 0, or a list such as 0,1")
    return [int(x) for x in ids]


def describe_device(device: torch.device) -> str:
    """One line for the console: the device, its size, and the software that drives it."""
    versions = f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        return f"{versions}, CUDA:{device.index} ({p.name}, {p.total_memory / 2**30:.0f} GiB)"
    if device.type == "cpu":
        return f"{versions}, CPU ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
    return f"{versions}, {device.type.upper()}"


def use_machine(world_size: int = 1) -> int:
    """Let PyTorch compute on every core this process may use, shared among `world_size` processes, and keep the memory
    that it frees, both for the life of the process; returns the number of threads.

    By itself PyTorch starts as many threads as the machine has cores, also where a container may use two of them. A
    machine of two cores is computed on with two threads (YOLOv5 leaves one idle). `OMP_NUM_THREADS` is respected.
    """
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, core_count() // max(1, world_size)))
    return torch.get_num_threads()


@functools.cache
def cpu_gains_from_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX); elsewhere it would be slower.

    oneDNN, which computes, can be kept from newer instructions by an environment variable; then it is slower here too.
    """
    limit = (os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL").upper()
    if not any(name in limit for name in ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")):
        return False
    with contextlib.suppress(OSError):
        flags = (machine.SYSTEM / "proc/cpuinfo").read_text()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False


def amp_dtype(device: torch.device, amp: str = "auto") -> torch.dtype | None:
    """The type for autocast on this device, or None for plain float32.

    `auto` is float16 on CUDA (with a gradient scaler, as in YOLOv5), bfloat16 on a processor with instructions for it,
    and float32 elsewhere.
    """
    if amp not in AMP_CHOICES:
        raise ValueError(f"--amp {amp}: choose one of {', '.join(AMP_CHOICES)}")
    if amp == "off":
        return None
    if amp == "bf16":
        return torch.bfloat16
    if amp == "fp16":
        if device.type == "cpu":
            raise ValueError("--amp fp16 needs a GPU; on the processor use --amp bf16 or off")
        return torch.float16
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if device.type == "cpu" and cpu_gains_from_bfloat16() else None


def half_dtype(device: torch.device) -> torch.dtype | None:
    """Type that `--half` means: float16 on CUDA, bfloat16 on a processor, float32 (None) elsewhere."""
    return {"cuda": torch.float16, "cpu": torch.bfloat16}.get(device.type)


def autocast(
    device: torch.device, enabled: bool = True, dtype: torch.dtype | None = None
) -> contextlib.AbstractContextManager:
    """Autocast to `dtype` (None: what suits the device); does nothing when off or when float32 suits it best."""
    dtype = dtype or (amp_dtype(device) if enabled else None)
    if not enabled or dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def memory_format(device: torch.device, dtype: torch.dtype | None, choice: str = "auto") -> torch.memory_format:
    """`channels_last` where the kernels prefer it: on the processor, and in half precision on CUDA."""
    if choice == "auto":
        choice = "channels_last" if device.type == "cpu" or (dtype and device.type == "cuda") else "contiguous"
    return torch.channels_last if choice == "channels_last" else torch.contiguous_format


def to_input(images: torch.Tensor, device: torch.device, layout: torch.memory_format | None = None) -> torch.Tensor:
    """uint8 pictures [B,3,H,W] in 0..255 → float32 in 0..1 on the device; they travel as bytes."""
    images = images.to(device, non_blocking=True)
    if layout is torch.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GiB: of the CUDA device, or the resident memory of this process (without its workers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # macOS counts bytes, Linux KiB


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# Processes ------------------------------------------------------------------------------------------------------------


def local_rank() -> int:
    """This process's number on its machine as `torchrun` set it; 0 without `torchrun`."""
    return int(os.environ.get("LOCAL_RANK", 0))


def data_parallel(model: nn.Module, device: torch.device, share_buffers: bool = True) -> DistributedDataParallel:
    """The model as each process of a run calls it, so that gradients are averaged.

    Args:
        device: of this process.
        share_buffers: every forward pass starts from the buffers of process 0; else each process keeps its own.
    """
    ids = [device.index] if device.type == "cuda" else None
    # PyTorch 2.13 renamed it, and warns of the old name
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if renamed else "broadcast_buffers"
    return DistributedDataParallel(model, device_ids=ids, **{option: share_buffers})


@dataclass(frozen=True)
class World:
    """The processes of one run: `rank` of `size`; (0, 1) without DDP."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        return self.size > 1


def init_world(device: torch.device) -> World:
    """Join the process group when started by `torchrun` (NCCL on CUDA, gloo elsewhere); once, however often asked."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # the others wait while rank 0 scans the data or draws, which may take longer than the default time-out
    backend = "nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
    timeout = datetime.timedelta(hours=3)
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    # torchrun keeps its store over a restart: without a name of their own, the processes would find the addresses of
    # those that died
    store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return World(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def main_first(world: World):
    """Rank 0 runs the block before the others do (scanning a data set, making the demo set)."""
    if world.distributed and not world.is_main:
        dist.barrier()
    yield
    if world.distributed and world.is_main:
        dist.barrier()


def broadcast_object(value, world: World):
    """Rank 0's value on every rank."""
    if not world.distributed:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value, world: World) -> list:
    """Every rank's value, in their order, on rank 0; nothing on the others."""
    if not world.distributed:
        return [value]
    values = [None] * world.size if world.is_main else None
    dist.gather_object(value, values)
    return values or []


def leave_world(world: World) -> None:
    """End the process group."""
    if world.distributed:
        dist.destroy_process_group()


def all_reduce_mean(value: torch.Tensor, world: World) -> torch.Tensor:
    """Mean of a tensor over the ranks, in place."""
    if world.distributed:
        dist.all_reduce(value)
        value /= world.size
    return value
