"""Packaging. Installs with ``pip install .``, ``pip install -e .`` and ``python setup.py build develop``.

Everything about the package stands here, and pyproject.toml names the build backend only: a table [project] there would
have to repeat it.

The operators in csrc/ are compiled where that is possible, and the package works without them. Environment variables:

MB_BUILD              auto (default): what this machine can build, and nothing is an error; cpu: the CPU operators, or
                      an error; cuda: those and the CUDA ones, or an error; none: nothing. Where the package is
                      installed in place, cpu and none also remove the operators of earlier builds that they leave out.
FORCE_CUDA            1: build the CUDA operators where there is a toolkit, even without a GPU.
TORCH_CUDA_ARCH_LIST  the GPUs to build for, such as "9.0"; the default is the GPUs here, or else ARCHS.
MAX_JOBS              how many compilers run at once.
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from setuptools import Command, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "maskrcnn_benchmark"

RUNTIME = [
    "torch>=2.11",
    "torchvision",
    "numpy>=1.26",
    "scipy>=1.11",
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
DEMO = ["fastapi>=0.115", "uvicorn>=0.30"]
TEST = [
    *DEMO,
    "pytest>=8.0",
    "pytest-xdist>=3.5",
    "hypothesis>=6.100",
    "transformers>=5.20",
    "faster-coco-eval>=1.8",
    "httpx>=0.27",
    "selenium>=4.20",
    "tensorboardX>=2.6",
    "timm>=1.0",
    "submitit>=1.4",
]
DEV = [*TEST, "ruff>=0.12", "mypy>=1.11", "types-PyYAML", "codespell>=2.3", "pre-commit>=3.5"]


ARCHS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # runs with this version of torch (2.11) and all later ones
BUILDING = {"build", "build_ext", "bdist_wheel", "develop", "editable_wheel", "install"}
IN_PLACE = {"develop", "editable_wheel", "--inplace", "-i"}
LEFT_OUT = {"none": ("_C", "_C_cuda"), "cpu": ("_C_cuda",)}  # MB_BUILD -> objects that are not wanted
KEEP = "keep"  # MB_BUILD for the pip that Develop starts: the objects are in place already


def say(text):
    print(f"{PACKAGE}: {text}", file=sys.stderr, flush=True)


def import_torch():
    """The torch that the package will run with, also from the isolated environment in which pip builds."""
    try:
        import torch
    except ModuleNotFoundError:
        for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}:
            site.addsitedir(folder)
        import torch
    return torch


def cuda_toolkit():
    """Folder of a CUDA toolkit with headers, or None. ``nvcc`` on the PATH may be a script that lies elsewhere."""
    nvcc = shutil.which("nvcc")
    beside = [Path(nvcc).resolve().parents[1], Path(nvcc).parents[1] / "cuda"] if nvcc else []
    places = [os.getenv("CUDA_HOME"), os.getenv("CUDA_PATH"), *beside, "/usr/local/cuda"]
    return next((str(p) for p in places if p and (Path(p) / "include" / "cuda_runtime.h").is_file()), None)


def extensions():
    """The objects to build, and the command that builds them; says why something is left out."""
    wanted = (os.getenv("MB_BUILD") or "auto").lower()
    if wanted == KEEP:
        return [], build_ext
    if wanted not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"MB_BUILD must be auto, cpu, cuda or none, got {wanted!r}")
    if IN_PLACE & set(sys.argv[1:]):
        remove(LEFT_OUT.get(wanted, ()))
    if wanted == "none" or not BUILDING & set(sys.argv[1:]):
        return [], build_ext
    try:
        torch = import_torch()
        from torch.utils import cpp_extension
    except ImportError as error:
        return leave_out("no operators are compiled: there is no torch to build with", error, wanted != "auto")
    if wanted == "auto" and not (os.getenv("CXX") or shutil.which("c++") or shutil.which("g++")):
        return leave_out("no operators are compiled: there is no C++ compiler", None, False)
    flags = ["-O3", "-g0", "-fvisibility=hidden", STABLE_ABI]
    shared = {"py_limited_api": True, "optional": True, "depends": sources("csrc/*/*.*h")}
    chosen = [
        cpp_extension.CppExtension(
            f"{PACKAGE}._C",
            ["csrc/schemas.cpp", *sources("csrc/cpu/*.cpp")],
            extra_compile_args=[*flags, "-ffp-contract=off"],
            **shared,
        )
    ]
    toolkit, forced = cuda_toolkit(), wanted == "cuda" or os.getenv("FORCE_CUDA") == "1"
    reason = None if torch.version.cuda else "this torch is not one for CUDA"
    reason = reason or (None if toolkit else "there is no CUDA toolkit (CUDA_HOME)")
    reason = reason or (None if forced or torch.cuda.is_available() else "there is no GPU (FORCE_CUDA=1 builds them)")
    if wanted == "cpu" or (reason and wanted == "auto"):
        say(f"no operators for CUDA are compiled: {reason or 'MB_BUILD=cpu'}")
    elif reason:
        sys.exit(f"MB_BUILD=cuda cannot be done: {reason}")
    else:
        os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = toolkit
        if not torch.cuda.is_available():
            os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHS)
        chosen.append(
            cpp_extension.CUDAExtension(
                f"{PACKAGE}._C_cuda",
                [*sources("csrc/cuda/*.cpp"), *sources("csrc/cuda/*.cu")],
                extra_compile_args={"cxx": [*flags, "-DUSE_CUDA"], "nvcc": ["-O3", "-DUSE_CUDA", STABLE_ABI]},
                **shared,
            )
        )
    return chosen, forgiving(cpp_extension.BuildExtension, must=wanted != "auto")


def remove(names):
    """Objects that an earlier build left in the package: it would go on using them."""
    for path in (path for name in names for path in (ROOT / PACKAGE).glob(f"{name}.*so")):
        path.unlink()
        say(f"removed {path.name}, built earlier: MB_BUILD={os.environ['MB_BUILD']}")


def leave_out(text, error, must):
    if must:
        sys.exit(f"MB_BUILD cannot be done: {text} ({error})")
    say(text)
    return [], build_ext


def sources(pattern):
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def forgiving(base, must):
    """``base``, the command build_ext of torch, with objects that may fail unless ``must``."""

    class Build(base):
        def build_extensions(self):
            every = list(self.extensions)
            for extension in every:
                self.extensions = [extension]
                try:
                    super().build_extensions()
                    say(f"built {extension.name}")
                except Exception as error:
                    if must:
                        raise
                    say(f"could not build {extension.name}, the package works without it: {error}")
            self.extensions = every

        def build_extension(self, extension):
            extension.optional = False  # an error is to be seen above
            try:
                super().build_extension(extension)
            finally:
                extension.optional = True

    return Build


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
        environment = dict(os.environ)
        if self.distribution.has_ext_modules():  # compiled here, once: pip is not to do it again
            if self.distribution.have_run.get("build_ext"):
                self.get_finalized_command("build_ext").copy_extensions_to_source()
            else:
                self.reinitialize_command("build_ext", inplace=True)
                self.run_command("build_ext")
            environment["MB_BUILD"] = KEEP
        command = [sys.executable, "-m", "pip", "install", "--editable", str(ROOT)]
        if find_spec("setuptools.command.bdist_wheel") or find_spec("wheel"):
            command.append("--no-build-isolation")  # this setuptools can do it: nothing to download for the build
        command += ["--no-deps"] * bool(self.no_deps) + ["--user"] * bool(self.user)
        subprocess.check_call(command, env=environment)


def version():
    text = (ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE).group(1)


EXTENSIONS, Build = extensions()

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
    extras_require={
        "demo": DEMO,
        "test": TEST,
        "dev": DEV,
        "timm": ["timm>=1.0"],
        "slurm": ["submitit>=1.4"],
        "wandb": ["wandb"],
    },
    # configs/ of the checkout lies at maskrcnn_benchmark/configs in an installation; paths.py finds both
    packages=[*find_packages(include=[PACKAGE, f"{PACKAGE}.*"]), f"{PACKAGE}.configs"],
    package_dir={f"{PACKAGE}.configs": "configs"},
    package_data={"": ["*.yaml", "*.html"], f"{PACKAGE}.configs": ["**/*.yaml", "**/*.json"]},
    entry_points={"console_scripts": [f"mrb={PACKAGE}.mrb:main"]},
    ext_modules=EXTENSIONS,
    cmdclass={"develop": Develop, "build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if EXTENSIONS else {},
    zip_safe=False,
)
