"""What the scripts that compare Terrace with fio share: running it, its buffers and the intervals."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys

FILL_CHUNK_BYTES = 4 << 20


def program(name):
    """A program of the release build beside this folder."""
    here = os.path.dirname(os.path.abspath(__file__))
    return os.path.join(here, "..", "build", "release", "bin", name)


def check_programs(*paths):
    """Ends the script when fio or one of `paths` is missing; turns SIGTERM into an exception, so
    that temporary files are removed."""
    if shutil.which("fio") is None:
        sys.exit("fio is not installed, and it is the baseline here (package fio)")
    for path in paths:
        if not os.access(path, os.X_OK):
            sys.exit(f"{path}: no such program; build it first")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted"))


def run(command):
    """Returns what the command prints; ends the script when it fails. Its buffers, fio's too, lie in
    transparent huge pages."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=dict(os.environ, GLIBC_TUNABLES="glibc.malloc.hugetlb=1"))
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def run_fio(path, size_mib, options, plain=False):
    """One job of fio on an existing file with io_uring and direct I/O; returns its JSON."""
    command = ["fio", "--name=row", f"--filename={path}", f"--size={size_mib}m",
               "--ioengine=io_uring", "--direct=1", "--numjobs=1", "--norandommap=1",
               "--output-format=json", "--allow_file_create=0", "--invalidate=0",
               "--iomem_align=4m"] + options
    if not plain:
        command += ["--fixedbufs=1", "--registerfiles=1"]
    text = run(command)
    return json.loads(text[text.index("{"):])["jobs"][0]  # notes may stand in front


def cpu_seconds(job):
    return (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000


def interval(values):
    """Median and quartiles as text."""
    low, _, high = (statistics.quantiles(values, n=4, method="inclusive")
                    if len(values) > 1 else (values[0],) * 3)
    return f"{statistics.median(values):5.2f} ({low:.2f} to {high:.2f})"


def in_turn(pairs, ours, theirs):
    """Runs both `pairs` times in the order A B, B A, ...; returns the list of pairs of results."""
    results = []
    for pair in range(pairs):
        if pair % 2 == 0:
            first = ours()
            results.append((first, theirs()))
        else:
            first = theirs()
            results.append((ours(), first))
    return results


def make_file(path, size_mib):
    """A file of bytes that do not compress, on the disk and not in the page cache."""
    with open(path, "wb") as file:
        for _ in range(0, size_mib << 20, FILL_CHUNK_BYTES):
            file.write(os.urandom(FILL_CHUNK_BYTES))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
