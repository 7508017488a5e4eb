"""Every fenced command of README.md, as it is printed there.

What needs the drawn world and the small model alone runs for real. What needs released files runs on a narrow network
and drawn pictures that lie where those of COCO, LVIS, Flickr30k and Aquarium would; evaluation and training stop after
their checks (--dry-run).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from maskrcnn_benchmark.data.drawn import Split, World
from maskrcnn_benchmark.data.drawn.forms import write_coco, write_flickr, write_lvis
from tests.docs import (
    FIRST,
    INSTALL,
    RELEASED,
    ROOT,
    TESTS,
    Block,
    blocks,
    environment,
    need_of,
    run_python,
    run_server,
    run_shell,
)
from tests.narrow import CONFIG, Narrow, make_narrow

AQUARIUM = "configs/odinw/Aquarium_Aquarium_Combined.v2-raw-1024.coco.yaml"


def some(need: str) -> list[Block]:
    return [block for block in blocks("README.md") if need_of(block) == need]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with all that the checkout has, and an environment of its own that sees the packages of this one."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in (".venv", ".git", "OUTPUT", "DATASET", "build") and path.suffix != ".egg-info":
            (folder / path.name).symlink_to(path)
    for name in ("setup.py", "maskrcnn_benchmark"):  # installing without operators removes those beside setup.py
        (folder / name).unlink()
    shutil.copy(ROOT / "setup.py", folder)
    ignored = shutil.ignore_patterns("_C*.so", "__pycache__")
    shutil.copytree(ROOT / "maskrcnn_benchmark", folder / "maskrcnn_benchmark", ignore=ignored)
    venv.create(folder / ".venv", symlinks=True)
    (packages,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    (packages / "parent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def installing(folder: Path) -> dict[str, str]:
    """An environment for pip in ``checkout``: nothing is downloaded, nothing outside the folder changes."""
    kept = {name: value for name, value in environment(dict(os.environ), folder.parent).items() if name != "PYTHONPATH"}
    pip = {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "MB_BUILD": "none"}
    bin_folder = folder / ".venv" / "bin"
    (bin_folder / "pip").write_text(f'#!/bin/sh\nexec {bin_folder}/python -m pip "$@"\n')
    (bin_folder / "pip").chmod(0o755)
    return kept | pip | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "VIRTUAL_ENV": str(folder / ".venv")}


@pytest.mark.full
def test_the_first_result(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    env = installing(checkout)
    for block in some(FIRST):
        if block.language == "python":
            run_python(block.text, block, {})
        elif block.text.startswith("mrb serve"):
            assert "<html" in run_server(block.text, checkout, env)
        else:
            told = run_shell(block.text, checkout, env)
            if block.text.startswith("make demo"):
                assert (checkout / told.strip().splitlines()[-1].split()[-1]).is_file(), "the report comes last"
    assert (checkout / "OUTPUT/detect/detections.json").is_file()
    assert (checkout / "OUTPUT/found.png").is_file()


@pytest.mark.full
@pytest.mark.parametrize("command", [line for block in some(INSTALL) for line in block.commands])
def test_ways_to_install(checkout: Path, command: str) -> None:
    env = installing(checkout)
    run_shell(command, checkout, env)
    where = "import maskrcnn_benchmark as package; print(package.__file__)"
    told = subprocess.run(
        [checkout / ".venv/bin/python", "-c", where],
        cwd=checkout.parent,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    place = Path(told.strip())
    assert place.is_relative_to(checkout) or place.is_relative_to(ROOT), told
    assert (checkout / ".venv/bin/mrb").is_file()


@pytest.mark.parametrize("block", some(TESTS), ids=str)
def test_commands_of_the_makefile(block: Block) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make on this machine")
    for command in block.commands:
        run_shell(f"{command} --dry-run", ROOT, environment(dict(os.environ), ROOT))


def draw_data(folder: Path) -> None:
    """Drawn pictures where the data of the commands are looked for."""
    coco, size = folder / "coco", (64, 64)
    for split in ("train2017", "val2017"):
        path = write_coco(coco / split, World(1, size=size, classes=("star", "circle")), 2).annotations
        (coco / "annotations").mkdir(exist_ok=True)
        shutil.copy(path, coco / "annotations" / f"instances_{split}.json")
    path = write_lvis(coco, World(2, size=size), 2).annotations
    shutil.copy(path, coco / "annotations" / "lvis_v1_minival_inserted_image_name.json")
    seven = ("star", "circle", "square", "heart", "moon", "cross", "diamond")
    for split in ("train", "valid", "test"):
        target = folder / "odinw/Aquarium/Aquarium Combined.v2-raw-1024.coco" / split
        path = write_coco(target, World(3, size=size, classes=seven), 4).annotations
        path.rename(target / "annotations_without_background.json")
    captions = folder / "mdetr_annotations"
    captions.mkdir()
    entities = folder / "flickr30k" / "flickr30k"
    for split in ("val", "test"):
        path = write_flickr(folder / split, World(4, Split.SEEN, size), 2).annotations
        path.rename(captions / f"final_flickr_separateGT_{split}.json")
        images = folder / "flickr30k" / "flickr30k_images"
        images.mkdir(parents=True, exist_ok=True)
        (folder / split / "pictures").rename(images / split)
        shutil.copytree(folder / split / "entities", entities, dirs_exist_ok=True)
        shutil.copy(entities / "seen.txt", entities / f"{split}.txt")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def filled(narrow: Narrow, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the words in braces stand for."""
    home = tmp_path_factory.mktemp("released")
    draw_data(home / "DATASET")
    keys: dict[str, object] = {"_BASE_": str(ROOT / CONFIG)}
    for name, value in zip(narrow.opts[::2], narrow.opts[1::2], strict=True):
        *sections, leaf = name.split(".")
        node = keys
        for section in sections:
            node = node.setdefault(section, {})  # type: ignore[assignment]
        node[leaf] = value
    keys["DATASETS"] = {"TRAIN": ["coco_grounding_train"], "TEST": ["coco_2017_val"]}
    config = home / "model.yaml"
    config.write_text(yaml.safe_dump(keys), encoding="utf-8")
    return {
        "config_file": str(config),
        "model_checkpoint": str(narrow.weights),
        "weights": str(narrow.weights),
        "output_dir": str(home / "out"),
        "task_files": AQUARIUM,
        "folder": str(home / "DATASET/coco/val2017"),
        "pictures": str(home / "DATASET/coco/val2017"),
    }


@pytest.mark.full
@pytest.mark.parametrize("block", some(RELEASED), ids=str)
def test_commands_for_released_models(block: Block, filled: dict[str, str], tmp_path: Path) -> None:
    home = Path(filled["config_file"]).parent
    env = environment(dict(os.environ), tmp_path) | {"DATASET": str(home / "DATASET")}
    text = re.sub(r"\{(\w+)\}", lambda word: filled[word[1]], block.text)
    text = re.sub(r"\btools/(\w+)\.py", rf"{ROOT}/tools/\1.py --dry-run", text)
    text = re.sub(r"\bmrb finetune\b", "mrb finetune --dry-run", text)
    run_shell(text, tmp_path, env)
