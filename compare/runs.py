"""The runs of a comparison: what each trains, and how they are started, continued and kept apart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from models.load import find_weights
from models.yolo import Model
from utils.balancing.options import BALANCERS
from utils.system import voice
from utils.system.files import whole_file
from utils.system.paths import ROOT, find_file
from utils.system.yamls import load_yaml
from utils.weights.checkpoint import load_checkpoint

# name -> ending of the model yaml, options of train_joint.py
NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "joint": ("_cls", ()),
    "detach": ("_cls", ("--balancer", "fixed", "--image-gradient", "0")),
    "dual": ("_dual", ("--balancer", "fixed")),
    "det-only": ("", ()),
    "cls-only": ("_cls", ("--balancer", "fixed", "--task-weights", "0", "1")),
    # as published; `gradnorm` has the default priorities of train_joint.py, and is `joint`
    "gradnorm-equal": ("_cls", ("--balancer", "gradnorm", "--task-priorities", "1", "1")),
}
DRAW_COUNT = 1000  # how often the validation draws groups for its intervals
# Options of train_joint.py that a comparison sets itself, those of the budget, which all strategies share, and those
# that make a strategy what it is.
OWN_OPTIONS = ("--data", "--seed", "--project", "--name", "--exist-ok", "--resume", "--evolve", "--device", "--epochs")
STRATEGY_OPTIONS = ("--cfg", "--balancer", "--task-weights", "--task-priorities", "--image-gradient")


@dataclass(frozen=True)
class Strategy:
    """A way to train: its name in the report, the ending of the model yaml and options of train_joint.py."""

    name: str
    ending: str
    options: tuple[str, ...]


def parse_strategy(text: str) -> Strategy:
    """A strategy from its words on the command line.

    `joint` (the defaults), `detach`, `dual`, `det-only`, `cls-only`, `gradnorm-equal` (the published priorities); a
    balancer, with task weights after a colon (`fixed:1,0.1`); or `NAME=OPTIONS` for a joint network with any options of
    train_joint.py but those that a comparison sets itself.

    Raises:
        ValueError: none of these.
    """
    name, equals, options = text.partition("=")
    if equals:
        if not name or set(name) & set('/\\:<>|*?"'):
            raise ValueError(f"--strategies {text!r}: a name that a folder may have belongs before the =")
        if name.startswith("-"):  # --weights='my runs/best.pt', which argparse takes for a value because of the space
            raise ValueError(f"--strategies {text!r}: write {name} and its value as two words")
        words = tuple(in_words(options))
        if name in (*NAMED, *BALANCERS) and Strategy(name, "_cls", words) != parse_strategy(name):
            raise ValueError(f"--strategies {text!r}: {name} means something else; give it another name")
        refuse_options(words, (*OWN_OPTIONS, "--single-cls"), f"--strategies {text!r}")
        return Strategy(name, "_cls", words)
    if text in NAMED:
        return Strategy(text, *NAMED[text])
    balancer, colon, weights = text.partition(":")
    if balancer not in BALANCERS or bool(colon) != bool(weights):
        raise ValueError(f"--strategies {text!r} is none of {', '.join([*NAMED, *BALANCERS])}, and no NAME=OPTIONS")
    flags = ("--balancer", balancer)
    return Strategy(text, "_cls", (*flags, "--task-weights", *weights.split(",")) if colon else flags)


def in_words(options: str) -> list[str]:
    """Words of a command line, with quotes where a word has spaces. A backslash is an ordinary character, as Windows'
    paths need it."""
    lexer = shlex.shlex(options, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    return list(lexer)


def refuse_options(words: Sequence[str], own: Sequence[str], place: str) -> None:
    """ValueError where one of the options `own`, or its beginning, stands among the words of a command line."""
    for word in words:
        flag = word.partition("=")[0]
        for option in own:
            if flag == option or (flag[:2] == "--" and len(flag) > 3 and option.startswith(flag)):
                raise ValueError(f"{place}: {option} cannot be given here, or the runs would be no comparison")


@dataclass(frozen=True)
class Job:
    """One run: a strategy, a seed and a data yaml.

    Attributes:
        fold: name of the data split in the report.
        folder: the training's own; `val` in it holds the validation of its last network.
        options: of train_joint.py, without the device.
        group: pattern of the groups that the validation draws for its intervals; '' for none.
        reads: hash of what the data and the files that the options name hold; '' where it is not known.
    """

    strategy: Strategy
    seed: int
    fold: str
    folder: Path
    options: tuple[str, ...]
    group: str = ""
    reads: str = ""

    @property
    def note(self) -> Path:
        """Says what the run is made of."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def name(self) -> str:
        return f"{self.strategy.name}, seed {self.seed}, {self.fold}"

    @property
    def finished(self) -> bool:
        return (self.folder / "finished.json").exists()

    @property
    def trained_with(self) -> dict:
        """All options of the training, as it wrote them down."""
        return load_yaml(self.folder / "opt.yaml") or {}

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


def plan(
    strategies: Sequence[Strategy],
    seeds: Sequence[int],
    folds: dict[str, Path],
    model: str,
    budget: Sequence[str],
    epochs: int,
    out: Path,
    group: str = "",
    contents: Mapping[str, str] | None = None,
) -> list[Job]:
    """All runs, seed by seed, so that a comparison that is cut short has something of every strategy.

    Args:
        folds: data yamls by name.
        model: such as `yolov5n`, to which the endings of the strategies are added.
        budget: options of train_joint.py that hold for all.
        group: see `Job`; it finds a group in the name of every picture that is validated on.
        contents: hash of each fold's data, by the names of `folds`.

    Raises:
        ValueError: a run in `out` was made with other options or data; two strategies have one name; the budget holds
            what must differ between runs.
    """
    if len({_folder_name(s.name).casefold() for s in strategies}) < len(strategies):
        raise ValueError("--strategies: each may stand once")
    refuse_options(budget, (*OWN_OPTIONS, *STRATEGY_OPTIONS), shlex.join(budget))
    budget = (*budget, "--epochs", str(epochs))
    cfgs = {s: ("--cfg", f"{model}{s.ending}.yaml") for s in strategies}
    named = {s: named_files((*cfgs[s], *budget, *s.options)) if contents else "" for s in strategies}
    jobs = []
    for seed in seeds:
        for fold, data in folds.items():
            for s in strategies:
                folder = out / fold / f"{_folder_name(s.name)}_seed{seed}"
                options = ("--data", str(data), *cfgs[s], "--seed", str(seed), *budget)
                reads = contents[fold] + named[s] if contents else ""
                jobs.append(Job(s, seed, fold, folder, (*options, *s.options), group, reads))
    for job in jobs:
        if not job.note.exists():
            continue
        note = json.loads(job.note.read_text())
        options, reads = (note, "") if isinstance(note, list) else (note["options"], note["reads"])  # a list: of old
        if options != list(job.options):
            raise ValueError(f"{job.note} holds other options than asked for now: choose another --out")
        begun = job.finished or (job.folder / "weights/last.pt").exists()  # what failed before that is tried again
        if begun and reads and job.reads and reads != job.reads:
            raise ValueError(
                f"{job.note}: the pictures, labels or classes, or a file that the options name, are not what they were "
                "when this run began: choose another --out"
            )
    return jobs


def named_files(options: Sequence[str]) -> str:
    """Hash of the content of the files that --cfg, --hyp and --weights name, found as a training finds them; official
    weights are fetched."""
    words = [part for word in options for part in (word.split("=", 1) if word.startswith("--") else [word])]
    value = dict(zip(words, words[1:], strict=False))
    finders = {
        "--cfg": lambda name: find_file(name, (ROOT / "models", ROOT / "models/hub")),
        "--hyp": lambda name: find_file(name, (ROOT / "data/hyps",)),
        "--weights": find_weights,
    }
    found = ""
    for flag, find in finders.items():
        with contextlib.suppress(OSError, ValueError):  # the training tells what is wrong with it
            found += hashlib.sha256(find(value[flag]).read_bytes()).hexdigest()[:16] if value.get(flag) else ""
    return found


def _folder_name(strategy: str) -> str:
    return strategy.replace(":", "_").replace(",", "_")


def perform(job: Job, device: str, cwd: str | None = None) -> str:
    """Train and validate one run, or what is left of it; returns why it failed, '' where it did not.

    The network of the last epoch is validated: the best one is chosen on the very pictures that it is judged by.

    Args:
        cwd: folder from which files that the options name count; by default this process's working folder.
    """
    if job.finished:
        return ""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    job.note.write_text(json.dumps({"options": job.options, "reads": job.reads}))
    last = job.folder / "weights" / "last.pt"
    cut = last.exists() and load_checkpoint(last).train_state is not None
    with open(job.log, "a", encoding="utf-8") as log:

        def call(script: str, *options: str) -> bool:
            command = [sys.executable, str(ROOT / script), *options, "--device", device]
            log.write(f"\n$ {shlex.join(command)}\n")
            log.flush()
            return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd).returncode == 0

        if cut:
            done = call("train_joint.py", "--resume", str(last))
        elif last.exists():  # trained to the end
            done = True
        else:
            shutil.rmtree(job.folder, ignore_errors=True)
            place = ("--project", str(job.folder.parent), "--name", job.folder.name, "--exist-ok")
            done = call("train_joint.py", *job.options, *place, "--noplots", "--patience", "0")
        log.flush()
        if not done:
            anew = f"; without the folder {job.folder} it starts anew" if cut else ""
            return f"training failed ({last_line(job.log)}); see {job.log}{anew}"
        opt = job.trained_with
        batch = 2 * opt["batch_size"] if opt["batch_size"] > 0 else 32
        size = ("--imgsz", str(opt["imgsz"]), "--batch-size", str(batch))
        what = ["--data", opt["data"], "--weights", str(last), "--workers", str(opt["workers"])]
        what += ["--single-cls"] if opt["single_cls"] else []
        what += ["--bootstrap", str(DRAW_COUNT), f"--group-regex={job.group}"] if job.group else []
        place = ("--project", str(job.folder), "--name", "val", "--exist-ok", "--save-txt", "--save-conf")
        if not call("val_joint.py", *what, *size, *place):
            return f"validation failed ({last_line(job.log)}); see {job.log}"
    figures = Model.from_checkpoint(load_checkpoint(last)).summary(opt["imgsz"])
    with whole_file(job.folder / "finished.json") as file:
        file.write_text(json.dumps({"parameters": figures["parameters"], "gflops": figures["gflops"]}))
    return ""


def last_line(file: Path) -> str:
    """What a program said last, which is why it ended."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def run_all(
    jobs: Sequence[Job], devices: Sequence[str], failed: dict[str, str], say: Callable[[str], None] = voice.say
) -> None:
    """Perform the jobs, one at a time on each device. A run that fails leaves the others alone.

    Args:
        failed: gets why runs failed, by the name of the run.
    """
    free: queue.Queue[str] = queue.Queue()
    for device in devices:
        free.put(device)
    stop = threading.Event()

    def work(number: int, job: Job) -> None:
        if stop.is_set():
            return
        device = free.get()
        try:
            say(f"[{number}/{len(jobs)}] {job.name}: {'finished before' if job.finished else 'starts'}")
            reason = perform(job, device)
        except Exception as error:  # of this run alone: a full disk, a damaged checkpoint
            reason = f"{type(error).__name__}: {error}"
        finally:
            free.put(device)
        if reason and not stop.is_set():
            failed[job.name] = reason
            say(f"[{number}/{len(jobs)}] {job.name}: {reason}")

    with ThreadPoolExecutor(len(devices)) as pool:
        try:
            list(pool.map(work, range(1, len(jobs) + 1), jobs))
        except KeyboardInterrupt:  # the trainings got the signal too, and save
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def run_on_ray(
    jobs: Sequence[Job], address: str, gpus: int, failed: dict[str, str], say: Callable[[str], None] = voice.say
) -> None:
    """The same on a Ray cluster whose machines see `out` and the data under the same paths, as on a shared disk.

    Args:
        address: of the cluster; `local` starts one on this machine.
        gpus: GPUs a run, 0 for the CPU.

    Raises:
        ModuleNotFoundError: ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ModuleNotFoundError("--ray needs ray: pip install ray") from None

    # Workers find the project's modules by this path.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    started = not ray.is_initialized()
    if started:
        ray.init(None if address == "local" else address, runtime_env=environment, log_to_driver=False)
    try:
        # Without a GPU a run has the cores of the smallest machine: two on one machine would slow each other.
        cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
        cores = min((count for count in cores if count), default=1)
        remote = ray.remote(num_gpus=gpus, num_cpus=1 if gpus else cores, max_retries=0)(perform)
        # Ray shows a run its own GPUs alone, so that theirs begin at 0.
        device = ",".join(map(str, range(gpus))) or "cpu"
        waiting = {remote.remote(job, device, os.getcwd()): job for job in jobs}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                reason = ray.get(ready)
            except Exception as error:  # of this run alone
                reason = f"{type(error).__name__}: {error}"
            say(f"[{len(jobs) - len(waiting)}/{len(jobs)}] {job.name}: {reason or 'finished'}")
            if reason:
                failed[job.name] = reason
    finally:
        if started:
            ray.shutdown()
