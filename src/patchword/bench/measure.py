"""The clock and the memory.

Time: all candidates take turns in one process, so that what else the machine does hits all alike; the median counts.

Memory: the most that one run holds above what it was given. The features and the parameters' values and gradients are
not counted; the features' gradients are, since every candidate has to make them. On a GPU torch's allocator knows. On a
CPU each candidate runs in a process of its own, and the kernel's high-water mark of resident memory is read; malloc is
told to give memory back first, and every larger block at once. That counts what a library allocates past torch, too,
and survives running out of memory. It reads up to 3 MiB more than torch.profiler's allocator events (870.3 for 869.1
MiB, 310.6 for 308.4, 43.9 for 40.9): smaller differences mean little.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from patchword.bench.candidates import Candidate, Setting, Step

MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD: blocks from this size on are the kernel's, and go back to it when freed
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Result:
    """What one candidate cost.

    Attributes:
        candidate: Which.
        forward: Seconds of each repeat's forward pass.
        total: Seconds of each repeat.
        peak: Bytes; None where this system cannot tell.
        value: The loss, or the mean score or interaction.
        error: How far an estimate is from the truth; None where nothing is estimated.
        failure: Why there are no numbers; empty where there are.
    """

    candidate: Candidate
    forward: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    peak: int | None = None
    value: float = float("nan")
    error: float | None = None
    failure: str = ""

    @property
    def seconds(self) -> float:
        """The median time of a forward and a backward pass."""
        return statistics.median(self.total)


def measure(
    found: Sequence[Candidate], setting: Setting, repeats: int, tell: Callable[[str], None] = lambda _: None
) -> list[Result]:
    """Memory first, each by itself, then the times, in turns; a candidate that fails drops out.

    Args:
        found: What to measure.
        setting: What at.
        repeats: How often each is timed, after one run that is not.
        tell: Called with what is being measured.
    """
    results = []
    for candidate in found:
        tell(f"memory of {candidate.name}, {candidate.by}")
        results.append(_memory_on_cuda(candidate, setting) if _on_cuda(setting) else _memory_on_cpu(candidate, setting))
    with _threads(setting.threads):
        features = setting.features()
        steps = {i: result.candidate.step(setting, *features) for i, result in enumerate(results) if not result.failure}
        for repeat in range(repeats + 1):
            for i, step in list(steps.items()):
                candidate = results[i].candidate
                tell(f"time of {candidate.name}, {candidate.by} ({repeat} of {repeats})")
                try:
                    forward, total = _time(step)
                except Exception as error:
                    results[i] = Result(candidate, failure=explain(error))
                    del steps[i]
                    continue
                if repeat:
                    results[i].forward.append(forward)
                    results[i].total.append(total)
    return results


def explain(error: BaseException) -> str:
    """A failure in a few words."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in first:
        return "out of memory"
    return f"{type(error).__name__}: {first}"


def _time(step: Step) -> tuple[float, float]:
    """Seconds of the forward pass, and of the whole."""
    step.clear()
    gc.collect()
    if _on_cuda(step.setting):
        start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        torch.cuda.synchronize(step.setting.device)
        start.record()
        value = step.forward()
        middle.record()
        step.backward(value)
        end.record()
        torch.cuda.synchronize(step.setting.device)
        return start.elapsed_time(middle) / 1e3, start.elapsed_time(end) / 1e3
    begin = time.perf_counter()
    value = step.forward()
    between = time.perf_counter()
    step.backward(value)
    return between - begin, time.perf_counter() - begin


def _memory_on_cuda(candidate: Candidate, setting: Setting) -> Result:
    def mark() -> int:
        torch.cuda.synchronize(setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        return torch.cuda.memory_allocated(setting.device)

    result = _watched(candidate, setting, mark, lambda: torch.cuda.max_memory_allocated(setting.device))
    gc.collect()
    torch.cuda.empty_cache()
    return result


def _memory_on_cpu(candidate: Candidate, setting: Setting) -> Result:
    """The result of `_child`, or how it died."""
    methods = multiprocessing.get_all_start_methods()
    # A fork of a process that has imported torch and open_clip and run nothing: no import to wait for, no threads to
    # lose.
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload([__name__, "open_clip"])
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(there, candidate, setting))
    child.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        child.join()
        why = "killed, probably out of memory" if child.exitcode == -9 else f"died with exit code {child.exitcode}"
        return Result(candidate, failure=why)
    finally:
        child.join()
        here.close()


def _child(parent: Connection, candidate: Candidate, setting: Setting) -> None:
    """Run in a process of its own: sends a `Result` without times."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, end this process and no other
    give_back()
    torch.set_num_threads(setting.threads)
    parent.send(_watched(candidate, setting, reset_peak, resident))


def _watched(
    candidate: Candidate, setting: Setting, mark: Callable[[], int | None], most: Callable[[], int | None]
) -> Result:
    """The result of one run without its times; `most` tells the most bytes since `mark` told how many there were."""
    result = Result(candidate)
    try:
        step = candidate.step(setting, *setting.features())
        for _ in range(2):  # the first run makes the parameters' gradients and the libraries' workspaces
            step.clear()
            gc.collect()
            before = mark()
            value = step.forward()
            step.backward(value)
            after = most()
            result.peak = None if before is None or after is None else max(after - before, 0)
            result.value = float(value.detach())
            del value
        result.error = step.error()
    except Exception as error:
        result.failure = explain(error)
    return result


def give_back() -> None:
    """Let malloc give larger blocks back to the system at once, from now on, so that the peak is true."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**16)


def reset_peak() -> int | None:
    """Resident bytes, from which the high-water mark now starts anew; None where the system has no such thing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # else a hole that the imports have left holds the first block that fits
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return resident("VmRSS")


def resident(name: str = "VmHWM") -> int | None:
    """Resident bytes: at most so far (`VmHWM`) or now (`VmRSS`); None where the system does not tell."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _on_cuda(setting: Setting) -> bool:
    return torch.device(setting.device).type == "cuda"
