"""The measurement of time and memory.

Time: all candidates take turns in one process, so that other load on the machine affects them equally. The order of
every other turn is reversed. A candidate that takes less than 20 ms runs several times in each turn, and the turn's
time is the median. The result is the median over turns.

Memory: the peak of one run minus the memory of its inputs. The features and the values and gradients of the parameters
are not counted. The gradients of the features are counted, because every candidate must compute them. On a GPU the peak
comes from torch's allocator. On a CPU each candidate runs in its own process, and the peak is the kernel's high-water
mark of resident memory; malloc is set to return free memory before the run and larger blocks immediately. This includes
memory that libraries allocate without torch, and a candidate that runs out of memory does not end the benchmark. The
peak is up to 3 MiB larger than that of torch.profiler's allocator events (870.3 instead of 869.1 MiB, 310.6 instead of
308.4, 43.9 instead of 40.9), so smaller differences mean little.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
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

# glibc's M_MMAP_THRESHOLD: larger blocks come directly from the kernel and return to it as soon as they are freed.
MMAP_THRESHOLD = -3
TURN = 0.02  # seconds that a turn of a fast candidate should take
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Result:
    """The cost of one candidate.

    Attributes:
        candidate: The candidate.
        forward: The seconds of each repeat's forward pass.
        total: The seconds of each repeat's forward and backward pass.
        peak: The peak memory in bytes; None if this system cannot measure it.
        value: The loss, or the mean score or interaction.
        error: The error of an estimate; None if nothing is estimated.
        failure: Why there are no numbers; empty if there are.
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
    """Measure the memory of each candidate by itself, then the times of all in turns; failing candidates drop out.

    Each candidate has one warm-up run, followed by `repeats` timed runs. `tell` is called with a description of the
    current measurement.
    """
    results = []
    for candidate in found:
        tell(f"memory of {candidate.name}, {candidate.by}")
        results.append(_memory_on_cuda(candidate, setting) if _on_cuda(setting) else _memory_on_cpu(candidate, setting))
    with _threads(setting.threads):
        features = setting.features()
        steps = {i: result.candidate.step(setting, *features) for i, result in enumerate(results) if not result.failure}
        runs = dict.fromkeys(steps, 1)
        for repeat in range(repeats + 1):
            for i in sorted(steps, reverse=repeat % 2 == 0):
                candidate = results[i].candidate
                tell(f"time of {candidate.name}, {candidate.by} ({repeat} of {repeats})")
                gc.collect()
                try:
                    times = [_time(steps[i], setting) for _ in range(runs[i])]
                except Exception as error:
                    results[i] = Result(candidate, failure=explain(error))
                    del steps[i]
                    continue
                forward, total = (statistics.median(seconds) for seconds in zip(*times, strict=True))
                if repeat:
                    results[i].forward.append(forward)
                    results[i].total.append(total)
                else:
                    runs[i] = math.ceil(TURN / total)
    return results


def explain(error: BaseException) -> str:
    """Describe a failure in a few words."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in first:
        return "out of memory"
    return f"{type(error).__name__}: {first}"


def _time(step: Step, setting: Setting) -> tuple[float, float]:
    """Return the seconds of the forward pass, and of the forward and backward pass together."""
    step.clear()
    if _on_cuda(setting):
        start, middle, end = (torch.cuda.Event(enable_timing=True) for _ in range(3))
        torch.cuda.synchronize(setting.device)
        start.record()
        value = step.forward()
        middle.record()
        step.backward(value)
        end.record()
        torch.cuda.synchronize(setting.device)
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
    """Return the result of `_child`, or the reason why its process ended without one."""
    # The fork server has imported torch and open_clip but has run nothing, so a fork of it starts fast and has no
    # threads to lose.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
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
    """Measure the memory of a candidate in its own process, and send a `Result` without times."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # If memory runs out, the kernel ends this process first.
    give_back()
    torch.set_num_threads(setting.threads)
    parent.send(_watched(candidate, setting, reset_peak, resident))


def _watched(
    candidate: Candidate, setting: Setting, mark: Callable[[], int | None], most: Callable[[], int | None]
) -> Result:
    """Return the result of one run without times.

    `mark` resets the peak and returns the present memory in bytes; `most` returns the peak since then.
    """
    result = Result(candidate)
    try:
        step = candidate.step(setting, *setting.features())
        # The first run allocates the gradients of the parameters and the libraries' workspaces. Its value is reported,
        # because losses can store something for the next step.
        for is_first in (True, False):
            step.clear()
            gc.collect()
            before = mark()
            value = step.forward()
            step.backward(value)
            after = most()
            result.peak = None if before is None or after is None else max(after - before, 0)
            result.value = float(value.detach()) if is_first else result.value
            del value
        result.error = None if step.error is None else step.error()
    except Exception as error:
        result.failure = explain(error)
    return result


def give_back() -> None:
    """Set malloc to return larger blocks to the system as soon as they are freed, so that the peak is accurate."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**16)


def reset_peak() -> int | None:
    """Reset the high-water mark, and return the present resident bytes; None if the system does not support this."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # Otherwise blocks could fit into free memory that the imports have left.
    try:
        CLEAR.write_text("5")
    except OSError:
        return None
    return resident("VmRSS")


def resident(name: str = "VmHWM") -> int | None:
    """Return the resident bytes: the peak (`VmHWM`) or the present value (`VmRSS`); None if they are unknown."""
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
