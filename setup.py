"""Packaging. Installs with ``pip install .``, ``pip install -e .`` and ``python setup.py build develop``.

Everything about the package stands here, and pyproject.toml names the build backend only: a table [project] there would
have to repeat it. Torch is not imported: a build in an isolated environment has none.
"""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from setuptools import Command, find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGE = "maskrcnn_benchmark"

RUNTIME = [
    "torch>=2.11",
    "torchvision",
    "numpy>=1.26",
    "Pillow>=10.1",
    "yacs>=0.1.8",
    "PyYAML>=6.0",
    "safetensors>=0.4.3",
    "tokenizers>=0.20",
    "huggingface_hub>=0.26",
    "tqdm>=4.60",
    "prettytable>=3.5",
    "pycocotools>=2.0.8",
    "hotcoco>=1.2",
]
TEST = ["pytest>=8.0", "pytest-xdist>=3.5", "hypothesis>=6.100", "transformers>=5.20", "faster-coco-eval>=1.8"]
DEV = [*TEST, "ruff>=0.12", "mypy>=1.11", "types-PyYAML", "codespell>=2.3", "pre-commit>=3.5"]


class Develop(Command):
    """``python setup.py develop``, the way of installing that older instructions give: an editable pip install.

    It stands on its own because the command of that name in setuptools calls pip in its turn since version 80, with a
    build in isolation, and is to be removed.
    """

    description = "install the package in place, so that edits take effect at once"
    user_options: ClassVar = [
        ("no-deps", "N", "do not install what the package depends on"),
        ("user", None, "install for this user only (no effect inside a virtual environment)"),
    ]

    def initialize_options(self):
        self.no_deps = False
        self.user = False

    def finalize_options(self):
        in_venv = sys.prefix != sys.base_prefix
        self.user = self.user and not in_venv

    def run(self):
        command = [sys.executable, "-m", "pip", "install", "--editable", str(ROOT)]
        if find_spec("setuptools.command.bdist_wheel") or find_spec("wheel"):
            command.append("--no-build-isolation")  # this setuptools can do it: nothing to download for the build
        command += ["--no-deps"] * bool(self.no_deps) + ["--user"] * bool(self.user)
        subprocess.check_call(command)


def version():
    text = (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


setup(
    name=PACKAGE,
    version=version(),
    description="Detection of things named in words: FIBER, GLIP and their relatives on today's PyTorch",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=["Programming Language :: Python :: 3", "Topic :: Scientific/Engineering :: Image Recognition"],
    python_requires=">=3.10",
    install_requires=RUNTIME,
    extras_require={"test": TEST, "dev": DEV},
    # configs/ of the checkout lies at maskrcnn_benchmark/configs in an installation; paths.py finds both
    packages=[*find_packages(include=[PACKAGE, f"{PACKAGE}.*"]), f"{PACKAGE}.configs"],
    package_dir={f"{PACKAGE}.configs": "configs"},
    package_data={"": ["*.yaml"], f"{PACKAGE}.configs": ["**/*.yaml"]},
    entry_points={"console_scripts": [f"mrb={PACKAGE}.mrb:main"]},
    cmdclass={"develop": Develop},
    zip_safe=False,
)
