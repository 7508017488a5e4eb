"""Training: one function over a small state.

What a batch is follows from (seed, epoch, place), what the network draws from generators that are in a checkpoint, and
the solver counts all else. A run that is interrupted anywhere goes on from its last checkpoint as if it had not been.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from maskrcnn_benchmark.checkpoint import resume
from maskrcnn_benchmark.checkpoint.io import CLASSES
from maskrcnn_benchmark.data.training import TrainingData
from maskrcnn_benchmark.engine import distributed
from maskrcnn_benchmark.engine.amp import Precision
from maskrcnn_benchmark.engine.boards import UNNAMED, Run, open_boards
from maskrcnn_benchmark.engine.curves import draw_curves
from maskrcnn_benchmark.engine.distributed import World
from maskrcnn_benchmark.engine.journal import Journal
from maskrcnn_benchmark.engine.rng import rng_state, set_rng_state
from maskrcnn_benchmark.engine.signals import Interrupted, Signals, requeue
from maskrcnn_benchmark.engine.trouble import BadStep, OutOfMemory, files, memory_advice, not_finite
from maskrcnn_benchmark.errors import DataError, WeightsError
from maskrcnn_benchmark.modeling.interface import Batch, Detector, Losses
from maskrcnn_benchmark.solver.build import Solver
from maskrcnn_benchmark.solver.plan import Plan

logger = logging.getLogger(__name__)

MOST_BAD = 20  # steps in a row without a finite loss, before it is given up


@dataclass
class Training:
    """Everything a training works on.

    Attributes:
        evaluate: Scores the present weights, called with the number of steps done, in every process; what it gives in
            the first one counts. None: nothing is scored.
        test: The same, once at the end; None: not there.
        on_bad_loss: What a loss that is no number means: "stop", "skip" the step, or "rollback": go on with the weights
            of the last checkpoint and the data that come next.
        keep: Checkpoints that stay beside the best and the last one; 0: all.
        find_unused: Some parameters may be without gradient in a step (several processes only).
        log_period: Steps in a row of ``metrics.jsonl``.
        boards: Where scalars go beside ``metrics.jsonl``: names of :data:`maskrcnn_benchmark.engine.boards.BOARDS`.
        called: What the run is called there.
        watch: Called in the main process with the number of a step and the first batch of it, before the step; the
            pictures that it gives go to the boards.
        resume_optimizer: Take the optimizer's averages from a checkpoint too; False: they begin anew.
        classes: Names of the labels, where the detector reads no text; they go into the checkpoints.
        look: Called in the main process with the number of a step and the first batch of it, before the step.
        label: Gives boxes to the pictures of a batch that have none, only the names of what is in them; None: there are
            no such pictures, or the detector learns from them as they are.
        labeller: Digest of the weights that ``label`` has; it goes into the checkpoints.
    """

    model: Detector
    solver: Solver
    data: TrainingData
    plan: Plan
    precision: Precision
    folder: Path
    device: torch.device
    world: World = field(default_factory=World)
    evaluate: Callable[[int], float] | None = None
    test: Callable[[int], float] | None = None
    on_bad_loss: str = "stop"
    keep: int = 3
    find_unused: bool = False
    log_period: int = 20
    boards: Sequence[str] = ()
    called: Run = UNNAMED
    watch: Callable[[int, Batch], Mapping[str, Image.Image]] | None = None
    resume_optimizer: bool = True
    classes: Sequence[str] = ()
    look: Callable[[int, Batch], None] | None = None
    label: Callable[[Batch], Batch] | None = None
    labeller: str = ""

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the score has not grown for too long."""
        return self.solver.done >= self.plan.steps or self.solver.stop

    @property
    def lr(self) -> float:
        """Rate of the next step, of the fastest group."""
        return max(group["lr"] for group in self.solver.optimizer.param_groups)


def train(run: Training) -> dict[str, Any]:
    """Train from the newest checkpoint of the folder, or from the beginning, to the end of the plan.

    Returns:
        "steps" done, "bad_steps" of them that were left out, "best" score of the evaluations and its "best_step" (0:
        there was none), and, where it was asked for, the score of the "test" at the end.

    Raises:
        DataError: a picture cannot be read, or a loss is no number.
        OutOfMemory: a batch does not fit.
        Interrupted: SIGTERM or SIGUSR1 came; the state is saved.
    """
    journal = Journal(run.folder, run.plan.steps, run.log_period, run.world.main, run.device)
    owed = _go_on(run, journal)
    journal.begin(run.solver.done)
    if run.world.main:
        journal.boards = open_boards(run.boards, run.folder, run.solver.done, run.called)
    with Signals() as signals, journal:
        if owed:
            _milestone(run, journal, scored=True)
        elif run.on_bad_loss == "rollback" and not run.solver.done:
            _save(run, journal)  # to go back to
        _steps(run, journal, signals)
        journal.finish(run.lr)
    best = run.solver.best
    found = {"steps": run.solver.done, "bad_steps": journal.bad, "best": best.score, "best_step": best.step}
    if run.world.main:
        draw_curves(run.folder)
    if run.test is not None:
        found["test"] = run.test(run.solver.done)
    distributed.barrier()
    return found


def _steps(run: Training, journal: Journal, signals: Signals) -> None:
    """All steps that are left, with their checkpoints.

    Raises:
        Interrupted: see :func:`train`.
    """
    if run.finished:
        logger.info("nothing is left to do: %d steps are done, of %d", run.solver.done, run.plan.steps)
        return
    model = distributed.wrap(run.model.train(), run.device, run.find_unused)
    epoch, start = run.plan.position(run.solver.done)
    pin = run.device.type == "cuda"
    batches = iter(run.data.loader(epoch, start, run.world.size, run.world.rank, endless=True, pin=pin))
    while not run.finished:
        generators = rng_state(run.device)
        try:
            values = _step(run, model, batches, journal)
        except OutOfMemory as full:
            _rescue(run, journal, generators, full)
            raise
        except BadStep as bad:
            _leave_out(run, journal, bad)
            values = {}
        done = run.solver.done
        journal.record(done, values, run.lr)
        scored = run.evaluate is not None and run.plan.tests(done)
        stop = distributed.any_process(signals.received is not None) and done < run.plan.steps
        if stop:
            _save(run, journal, owed=scored)
            if distributed.any_process(signals.come_back) and run.world.main:
                requeue()
            raise Interrupted(f"{signals.name}: saved after {done} of {run.plan.steps} steps, run again to go on")
        if scored or run.plan.saves(done):
            _milestone(run, journal, scored)


def _newest(run: Training) -> Path | None:
    """The checkpoint to go on from, the same for all processes."""
    found = resume.find_latest(run.folder) if run.world.main else None
    name: str = distributed.broadcast(str(found) if found else "")
    return Path(name) if name else None


def _go_on(run: Training, journal: Journal) -> bool:
    """Take up the newest checkpoint, if there is one; returns whether it is still to be scored."""
    path = _newest(run)
    if path is None:
        return False
    state = resume.load_state(path)
    if state.get("labeller", run.labeller) != run.labeller:
        raise WeightsError(
            f"{path}: the boxes for image labels came from other weights (sha256 {state['labeller'][:12]}) than now "
            f"({run.labeller[:12]}): name those that this training began with (MODEL.DECOLA.SELF_LABEL.TEACHER_WEIGHT, "
            "or else MODEL.WEIGHT), or choose another OUTPUT_DIR"
        )
    run.model.load_state_dict(state["model"])
    if not run.resume_optimizer:
        state["optimizer"] = run.solver.optimizer.state_dict()
    run.solver.load_state_dict(state)
    journal.load_state_dict(state["journal"])
    if len(state["rng"]) == run.world.size:
        set_rng_state(state["rng"][run.world.rank], run.device)
    else:
        logger.warning(
            "%s was written by %d processes, this run has %d: what the network draws will differ",
            path,
            len(state["rng"]),
            run.world.size,
        )
    if state["data"] != _data_facts(run):
        logger.warning("%s: the data or the batches are others now, so an epoch does not go on where it was", path)
    logger.info("going on from %s: %d of %d steps are done", path, run.solver.done, run.plan.steps)
    return bool(state["owed"])


def _data_facts(run: Training) -> list[int]:
    """What the place in the data follows from, beside the number of steps."""
    plan = run.data.plan
    return [run.data.seed, plan.samples, plan.batch_size, run.plan.accumulation, plan.batches, plan.parts, *plan.sizes]


def _step(run: Training, model: torch.nn.Module, batches: Iterator[Batch], journal: Journal) -> dict[str, float]:
    """One step of the optimizer over ``accumulation`` batches; returns mean losses.

    Raises:
        BadStep: a loss or a gradient is no number.
    """
    sums: dict[str, Tensor] = {}
    pictures: list[str] = []
    parts = run.plan.accumulation
    for part in range(parts):
        batch = _labelled(run, run.data.prepare(journal.take(batches), run.device))
        if run.look is not None and run.world.main and part == 0:
            run.look(run.solver.done + 1, batch)
        if run.watch is not None and run.world.main and part == 0:
            _show(run, run.watch, batch, journal)
        pictures += files(batch)
        last = part == parts - 1
        with distributed.without_sync(model, last=last), memory_advice(batch, run.solver.done + 1):
            with run.precision.autocast():
                losses: Losses = model(batch, distributed.peers())
            total = losses.total()
            try:
                _check(not_finite(losses, total, batch))
            except BadStep:
                for _ in range(part + 1, parts):  # the next step begins with the same batch as without this one
                    journal.take(batches)
                raise
            run.solver.backward(total, parts)
        for name, value in {"loss": total, **losses.terms, **losses.metrics}.items():
            sums[name] = sums.get(name, torch.zeros((), device=run.device)) + value.detach() / parts
    with memory_advice(batch, run.solver.done + 1, whole=False):
        step = run.solver.step()
    if not step.taken and not run.solver.scaler.is_enabled():  # which finds its scale by such steps
        _check(f"a gradient for {', '.join(pictures)}", counted=True)
    return distributed.reduce_mean({**sums, "gradient_norm": step.gradient_norm})


def _show(
    run: Training, watch: Callable[[int, Batch], Mapping[str, Image.Image]], batch: Batch, journal: Journal
) -> None:
    """Pictures of the next step, where it has some, on all boards."""
    step = run.solver.done + 1
    with memory_advice(batch, step), run.precision.autocast():
        pictures = watch(step, batch)
    for board in journal.boards:
        for name, picture in pictures.items():
            board.add_picture(name, picture, step)


def _labelled(run: Training, batch: Batch) -> Batch:
    """A batch with boxes, also where there were only labels."""
    if run.label is None:
        return batch
    with memory_advice(batch, run.solver.done + 1), run.precision.autocast():
        return run.label(batch)


def _check(told: str, counted: bool = False) -> None:
    """Tell all processes what is no number in one of them.

    Raises:
        BadStep: there is such a thing.
    """
    if distributed.any_process(bool(told)):
        everything = [text for text in distributed.gather_objects(told) if text]
        raise BadStep("; ".join(everything), counted)


def _leave_out(run: Training, journal: Journal, bad: BadStep) -> None:
    """A loss is no number: stop, forget the step, or forget all since the last checkpoint.

    Raises:
        DataError: it is to stop, or it has happened too often.
    """
    step = run.solver.done + (not bad.counted)
    run.solver.drop()
    told = f"step {step}: not a finite number: {bad.told}"
    if run.on_bad_loss == "stop":
        raise DataError(
            f"{told}: lower SOLVER.BASE_LR, look at these pictures, or set SOLVER.ON_BAD_LOSS skip or rollback"
        )
    if journal.bad_in_a_row + 1 >= MOST_BAD:
        raise DataError(f"{told}: {MOST_BAD} steps in a row had to be left out: lower SOLVER.BASE_LR")
    if run.on_bad_loss == "rollback":
        path = _go_back(run)
        logger.warning("%s: the weights go back to %s, the data go on (%d so far)", told, path, journal.bad + 1)
    else:
        logger.warning("%s: the step is left out (%d so far)", told, journal.bad + 1)
    if not bad.counted:
        run.solver.schedule.step()


def _go_back(run: Training) -> Path | None:
    """Weights, averages and moments of the last checkpoint; steps go on being counted, so other data come next."""
    path = _newest(run)
    if path is not None:
        state = resume.load_state(path)
        present = {name: run.solver.state_dict()[name] for name in ("scheduler", "counters")}
        run.model.load_state_dict(state["model"])
        run.solver.load_state_dict({**state, **present})
    return path


def _milestone(run: Training, journal: Journal, scored: bool) -> None:
    """Score the weights, where it is their turn, and save."""
    best = False
    if scored and run.evaluate is not None:
        best = run.solver.evaluated(distributed.hand_out(run.evaluate(run.solver.done)))
        run.model.train()
    _save(run, journal, best=best)


def _rescue(run: Training, journal: Journal, generators: dict[str, Any], full: OutOfMemory) -> None:
    """Save what the last whole step left; not where others, who may have memory left, wait for this process."""
    done = run.solver.done
    if run.world.size > 1 or not full.whole or not done or (run.folder / resume.name_of(done)).exists():
        return
    try:
        _save(run, journal, generators=generators)
        logger.info("saved after %d of %d steps", done, run.plan.steps)
    except MemoryError:
        logger.warning("no memory is left to save the state after %d steps with: earlier checkpoints stay", done)


def _save(
    run: Training,
    journal: Journal,
    best: bool = False,
    owed: bool = False,
    generators: dict[str, Any] | None = None,
) -> None:
    """Write the state.

    Args:
        best: No weights have had a better score.
        owed: The weights are still to be scored.
        generators: The state of random numbers that the next step begins with; None: the present one.
    """
    everywhere = distributed.gather_objects(generators or rng_state(run.device))
    if run.world.main:
        state = {
            "model": run.model.state_dict(),
            "iteration": run.solver.done,
            "rng": everywhere,
            "journal": journal.state_dict(),
            "data": _data_facts(run),
            **({CLASSES: list(run.classes)} if run.classes else {}),
            **({"labeller": run.labeller} if run.labeller else {}),
            "owed": owed,
            **run.solver.state_dict(),
        }
        resume.save(state, run.folder, run.solver.done, keep=run.keep, best=best, final=run.finished)
    distributed.barrier()
