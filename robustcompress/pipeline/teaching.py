"""Whom a run's objectives learn from: the recipe's teacher, or the run's own dense network."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from robustcompress.errors import ConfigError, RobustCompressError
from robustcompress.pipeline.context import Context
from robustcompress.pipeline.rebuilding import build
from robustcompress.pruning.copies import private_copy, run
from robustcompress.storage.artifact import Artifact, has_artifact, load_artifact, save_artifact
from robustcompress.storage.dtypes import to_array
from robustcompress.storage.rebuild import load_into
from robustcompress.training.distillation import Teacher

_HOW = "Name the artifact folder of a robust network: --set teacher=FOLDER, or teacher: in the recipe."


def prepare_teacher(context: Context, stages: Sequence[str], finished: Sequence[str]) -> None:
    """Make sure, before anything trains, that every stage that needs a teacher will have one.

    Args:
        context: Of the run.
        stages: Those that are asked for.
        finished: Those that are done and will not be run again.

    Raises:
        ConfigError: If there is no teacher, or it does not fit the network.
        StorageError: If its artifact cannot be read.
    """
    recipe = context.recipe
    if stages and "pretrain" not in stages and context.workers.is_main:
        _keep_start(context)
    learning = [
        stage for stage in stages if stage not in finished and recipe.objective_of(stage).needs_teacher
    ]
    if not learning:
        return
    if recipe.teacher is None:
        if "pretrain" in learning:
            kind = recipe.objective_of("pretrain").kind
            raise ConfigError(
                f"the objective {kind!r} learns from a robust network, and pretrain is what makes one. Set "
                "pretrain.objective to trades or pgd (--set pretrain.objective=trades), or name the artifact "
                "folder of a network that is robust already (--set teacher=FOLDER)."
            )
        if recipe.pretrain.epochs and "pretrain" in stages and "pretrain" not in finished:
            return  # its artifact will be the teacher
    teacher_of(context)


def teacher_for(context: Context, stage: str, before: Artifact | None = None) -> Teacher | None:
    """Return whom ``stage`` learns from; ``None`` if its objective needs no teacher.

    Args:
        context: Of the run.
        stage: One that trains.
        before: What the stage before it handed on, if that may have had a teacher.

    Raises:
        ConfigError: If there is no teacher, it does not fit the network, or it is not the one of the stage
            before.
        StorageError: If its artifact cannot be read.
    """
    if not context.recipe.objective_of(stage).needs_teacher:
        return None
    teacher = teacher_of(context)
    earlier = str(before.metrics.get("teacher", "")) if before else ""
    if before and earlier not in ("", teacher.identity):
        raise ConfigError(
            f"{before.stage} learnt from the teacher {earlier[:12]}; this one is {teacher.identity[:12]} "
            "(hashes of their tensors). Put the first one back, or begin a new run in another folder."
        )
    return teacher


def teacher_of(context: Context) -> Teacher:
    """Return the run's teacher, loaded once; every process gets the first one's.

    It is the recipe's; otherwise what the run's own pretrain stage handed on; otherwise the network that the
    run began with, which is then kept in the run's folder.

    Raises:
        ConfigError: If there is none, or it does not fit the network.
        StorageError: If its artifact cannot be read.
    """
    if context.teacher is None:
        found = context.workers.from_main(_load(context) if context.workers.is_main else None)
        assert found is not None
        folder, artifact = found
        network = _network(context, artifact, folder)
        context.teacher = Teacher(network, identity_of(artifact.tensors))
    return context.teacher


def identity_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        dtype, values = to_array(name, tensors[name])
        digest.update(f"{name} {dtype.name} {list(tensors[name].shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _load(context: Context) -> tuple[Path, Artifact]:
    """Return the teacher's folder and artifact."""
    if context.recipe.teacher is not None:
        folder = context.recipe.teacher
        artifact = load_artifact(folder)
        if artifact.stage == "prune":
            raise ConfigError(
                f"teacher {folder} is what a prune stage handed on: its masks are not in its weights yet. "
                "Name the folder of the stage pretrain or finetune, or of the compacted network."
            )
        return folder, artifact
    _keep_start(context)
    for folder in _own_folders(context):
        if has_artifact(folder):
            return folder, load_artifact(folder)
    start = context.start
    if start is None:
        raise ConfigError(
            "there is no teacher: the run has no pretrain stage, and it begins with freshly drawn weights. "
            f"{_HOW}"
        )
    raise ConfigError(
        f"there is no teacher: the run begins with the pruned network {context.recipe.weights}. {_HOW}"
    )


def _own_folders(context: Context) -> tuple[Path, Path]:
    """Return where the run's own dense network may lie: what pretrain made, what the run began with."""
    stages = context.run_dir / "stages"
    return stages / "pretrain", stages / "start"


def _keep_start(context: Context) -> None:
    """Save the network that the run begins with if a later stage may learn from it.

    The module that a resumed run is given need not hold those weights any more.
    """
    recipe, start = context.recipe, context.start
    wanted = recipe.teacher is None and any(
        recipe.objective_of(stage).needs_teacher for stage in ("prune", "finetune")
    )
    if not wanted or start is None or start.extra_tensors:
        return
    pretrained, folder = _own_folders(context)
    if not has_artifact(pretrained) and not has_artifact(folder):
        save_artifact(start, folder)


def _network(context: Context, artifact: Artifact, folder: Path) -> nn.Module:
    """Return the teacher's network on the run's device, tried out on a few images."""
    try:
        if artifact.architecture:
            known = dict(artifact.architecture) == dict(context.architecture)
            allow_import = context.allow_import or known
            network = build(artifact.architecture, where=folder, allow_import=allow_import)
        else:
            network = private_copy(context.model)
        load_into(network, artifact.tensors)
        network = network.to(context.device).eval().requires_grad_(False)
        with torch.no_grad():
            answers = run(network, context.example_inputs)
            ours = run(private_copy(context.model).eval(), context.example_inputs)
    except RobustCompressError as error:
        raise ConfigError(f"teacher {folder} cannot be used: {error}") from error
    if answers.shape != ours.shape or not bool(answers.isfinite().all()):
        raise ConfigError(
            f"teacher {folder} must return finite logits {list(ours.shape)}, as the network does; got "
            f"{list(answers.shape)}. Name one that was trained on the same classes."
        )
    return network
