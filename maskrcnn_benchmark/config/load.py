"""From files and the command line to a frozen config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_benchmark.config import aliases, detectron2, files
from maskrcnn_benchmark.config.defaults import DEFAULTS_OF, FREE_FORM, NOT_OF, get_defaults
from maskrcnn_benchmark.config.defaults.decola import ARCHITECTURES as DECOLA
from maskrcnn_benchmark.config.node import DEFAULT, Cfg, is_under
from maskrcnn_benchmark.errors import ConfigError

COMMAND_LINE = "command line"
AUTO = "/auto"  # in OUTPUT_DIR of DECOLA's files: the name of the config file


def load_cfg(
    config_file: str | Path | None = None, task_config: str | Path | None = None, opts: Sequence[object] = ()
) -> Cfg:
    """The config of a run: defaults, then files with what they are based on, then the command line; frozen.

    A network is built from ``config_file`` and ``opts`` alone: load that config without ``task_config``, which is for
    the data and the evaluation (the keys of a task file never reached the network in FIBER and GLIP either).

    Args:
        config_file: YAML file of the model; relative to the current folder or to the repository.
        task_config: YAML file of a data set.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``; the last one of a key counts.

    Raises:
        ConfigError: a file, a key, a value, or a combination of values that will not do.
    """
    cfg = get_defaults()
    given = [
        (key, value, source)
        for path in (config_file, task_config)
        if path is not None
        for source, tree in files.read_chain(path)
        for key, value in _flatten(tree, source, cfg)
    ]
    given += [(key, value, COMMAND_LINE) for key, value in _pairs(opts, cfg)]
    architecture = str(*[value for key, value, _ in given if key == "MODEL.META_ARCHITECTURE"][-1:])
    architecture = detectron2.ARCHITECTURES.get(architecture, architecture)
    foreign = NOT_OF.get(architecture, ())
    for key, default in DEFAULTS_OF.get(architecture, {}).items():
        cfg.assign(key, default, DEFAULT)
    table = detectron2.TABLE if architecture in DECOLA else aliases.TABLE
    for key, value, source in given:
        if key == "MODEL.META_ARCHITECTURE":
            value = detectron2.ARCHITECTURES.get(str(value), value)
        _assign(cfg, key, value, source, foreign, table)
    if architecture in DECOLA and config_file is not None and AUTO in cfg.peek("OUTPUT_DIR"):
        folder = cfg.peek("OUTPUT_DIR").replace(AUTO, f"/{Path(config_file).stem}")
        cfg.assign("OUTPUT_DIR", folder, cfg.source("OUTPUT_DIR"))
    return cfg.finish()


def _assign(
    cfg: Cfg, key: str, value: object, source: str, foreign: Sequence[str], table: Mapping[str, aliases.Alias]
) -> None:
    """Set a key, or what has become of it; ``foreign`` keys are those of other architectures."""
    alias = None if cfg.has(key) and not is_under(key, foreign) else aliases.find(key, table)
    if alias is None:
        cfg.assign(key, value, source)
    elif isinstance(alias, aliases.Renamed):
        cfg.note(source, key, f"called {alias.key} here")
        cfg.assign(alias.key, value, source)
    elif isinstance(alias, aliases.Mapped):
        cfg.note(source, key, f"called {alias.key} here")
        cfg.assign(alias.key, alias.value(key, value, source), source)
    elif isinstance(alias, aliases.Fixed):
        alias.check(key, value, source)
    else:
        cfg.note(source, key, f"no effect, as in the original ({alias.reason})")


def _flatten(tree: Mapping[Any, Any], source: str, cfg: Cfg, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value); free-form groups stay whole, groups without a value are empty."""
    for name, value in tree.items():
        if not isinstance(name, str):
            raise ConfigError(f"{source}: a key under {prefix.rstrip('.') or 'the top'} is not text: {name!r}")
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in FREE_FORM:
            yield from _flatten(value, source, cfg, f"{key}.")
        elif value is not None or not (cfg.has(key) and isinstance(cfg.peek(key), Cfg)):
            yield key, value


def _pairs(opts: Sequence[object], cfg: Cfg) -> Iterator[tuple[str, object]]:
    keys = {key for key, _ in cfg.keys_and_values()}
    for option in opts[::2]:
        if str(option).startswith("-"):
            raise ConfigError(f"{COMMAND_LINE}: {option!r} stands after KEY VALUE pairs: put options before them")
    if len(opts) % 2:
        lonely = next((key for key, value in zip(opts[::2], opts[1::2], strict=False) if str(value) in keys), opts[-1])
        raise ConfigError(f"{COMMAND_LINE}: {lonely!r} has no value: give pairs like TEST.IMS_PER_BATCH 4")
    yield from zip(map(str, opts[::2]), opts[1::2], strict=True)
