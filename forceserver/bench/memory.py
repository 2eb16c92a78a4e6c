"""What processes hold and use, and what the GPU holds. MB are 10^6 bytes. Only Linux tells it of other processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

FIELD = re.compile(r"(\w+):\s+(\d+) kB")


@dataclass(frozen=True)
class Memory:
    """Of all processes of one contender that provide forces, summed."""

    peak_MB: float  # resident; libraries that several processes share count in each of them
    own_MB: float  # resident now and of no file: what each process has for itself


def memory_of(pids: Iterable[int]) -> Memory | None:
    """Raises nothing: None where the system does not say, or a process has ended."""
    peak = own = 0.0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return None
        fields = {name: 1.024e-3 * int(value) for name, value in FIELD.findall(text)}
        if not {"VmHWM", "RssAnon"} <= set(fields):
            return None
        peak, own = peak + fields["VmHWM"], own + fields["RssAnon"]
    return Memory(peak, own)


def available_megabytes() -> float | None:
    """That new processes can have without anybody being pushed out; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    fields = {name: 1.024e-3 * int(value) for name, value in FIELD.findall(text)}
    return fields.get("MemAvailable")


def processor_seconds(pids: Iterable[int]) -> float | None:
    """That processes have used so far, all their threads together, to a hundredth; None where the system does not say."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        ticks += int(fields[11]) + int(fields[12])  # in user and in system mode
    return ticks / os.sysconf("SC_CLK_TCK")


def used_gpu_megabytes() -> float | None:
    """Used on all GPUs together, by whomever; None without a GPU of NVIDIA's."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode != 0:
        return None
    return sum(1.048576 * float(line) for line in answer.stdout.split())
