"""A yacs node that helps: it knows who set a key, what was read, and which key was meant."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from yacs.config import CfgNode

from maskrcnn_benchmark.config.check import problems
from maskrcnn_benchmark.config.values import coerce, show
from maskrcnn_benchmark.errors import ConfigError

DEFAULT = "default"


class Cfg(CfgNode):  # type: ignore[misc]  # yacs has no types
    """The tree of settings, or a node of it.

    Attribute access reads a key and is recorded; item access is not. :meth:`source`, :attr:`notes`, :meth:`unread`,
    :meth:`override` and :meth:`dump_with_sources` are for the root. A node with ``new_allowed`` is free-form: its
    entries are named by the user, and each is one value that holds what the user wrote.
    """

    def __init__(self, init_dict: Any = None, key_list: Any = None, new_allowed: bool = False):
        super().__init__(init_dict, key_list, new_allowed)
        self.__dict__.update(_seen=set(), _sources={}, _notes={}, _kinds={})

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        value = self[name]
        if not isinstance(value, Cfg) or value.is_new_allowed():
            self.__dict__["_seen"].add(name)
        return value

    def defrost(self) -> None:
        """Refused: a config does not change once it is loaded."""
        raise AttributeError("a loaded config is frozen for good: make another one with override()")

    def merge_from_other_cfg(self, cfg_other: object) -> None:
        """Refused, and with it merging from a file or a list: yacs forgets who set a key."""
        raise AttributeError("use load_cfg() or override()")

    merge_from_file = merge_from_list = merge_from_other_cfg

    @property
    def notes(self) -> list[str]:
        """What the loader noticed, a line for each file and reason: old names, and keys without effect."""
        return [f"{source}: {', '.join(keys)}: {text}" for (source, text), keys in self.__dict__["_notes"].items()]

    def note(self, source: str, key: str, text: str) -> None:
        """Add a key to :attr:`notes`, once; for the loader."""
        self.__dict__["_notes"].setdefault((source, text), {})[key] = None

    def keys_and_values(self) -> Iterator[tuple[str, Any]]:
        """``(dotted key, value)`` of every leaf; not recorded as a read."""
        for key, value, _ in _leaves(self):
            yield key, value

    def peek(self, key: str) -> Any:
        """The value of a dotted key; not recorded as a read."""
        node: Any = self
        for part in key.split("."):
            node = node[part]
        return node

    def has(self, key: str) -> bool:
        """Whether there is a dotted key, or a group of that name."""
        node: Any = self
        for part in key.split("."):
            if not isinstance(node, Cfg) or part not in node:
                return False
            node = node[part]
        return True

    def source(self, key: str) -> str:
        """Who set a key: "default", a file, or "command line"."""
        if key in self.__dict__["_sources"]:
            return str(self.__dict__["_sources"][key])
        self.peek(key)  # an unknown key is a fault of the caller
        return DEFAULT

    def assign(self, key: str, value: object, source: str) -> None:
        """Set one dotted key; for the loader.

        Args:
            key: ``MODEL.WEIGHT``, or ``DATASETS.REGISTER`` and any free-form node with a mapping.
            value: From YAML or the command line.
            source: Where the value stands; named in messages.

        Raises:
            ConfigError: there is no such key, or the value is of another type.
        """
        if self.is_frozen():
            raise AttributeError("a loaded config is frozen: make another one with override()")
        *path, last = key.split(".")
        node: Any = self
        for depth, part in enumerate(path):
            node = node.get(part)
            if not isinstance(node, Cfg):
                raise self._unknown(key, source)
            if node.is_new_allowed():
                return self._assign_free(".".join(path[: depth + 1]), [*path[depth + 1 :], last], value, source)
        if last not in node:
            raise self._unknown(key, source)
        if isinstance(node[last], Cfg):
            return self._assign_node(key, node[last], value, source)
        try:
            value = coerce(value, node[last], self.__dict__["_kinds"].get(key))
        except ValueError as error:
            raise ConfigError(f"{source}: {key} {error}, got {show(value)}") from None
        dict.__setitem__(node, last, value)
        self.__dict__["_sources"][key] = source

    def _assign_node(self, key: str, node: Cfg, value: object, source: str) -> None:
        if not node.is_new_allowed() or not isinstance(value, Mapping):
            inside = f"{key}.{next(iter(node), 'NAME')}"
            raise ConfigError(f"{source}: {key} is a group of keys like {inside}, got {show(value)}")
        for name, entry in value.items():
            self._assign_free(key, [str(name)], entry, source)

    def _assign_free(self, node_key: str, path: Sequence[str], value: object, source: str) -> None:
        """``path`` is a name, or from the command line a name (which may hold dots) and a key of it."""
        node = self.peek(node_key)
        name = path[0] if len(path) == 1 else ".".join(path[:-1])
        entry = value if len(path) == 1 else {path[-1]: value}
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{source}: {node_key}.{name} expects keys like img_dir and ann_file, got {show(value)}")
        try:
            merged = Cfg({**node.get(name, {}), **entry}, new_allowed=True)
        except AssertionError:  # yacs: a date, a set, ... that YAML made of a value
            raise ConfigError(f"{source}: {node_key}.{name} expects text and numbers, got {show(value)}") from None
        dict.__setitem__(node, name, merged)
        self.__dict__["_sources"][f"{node_key}.{name}"] = source

    def _unknown(self, key: str, source: str) -> ConfigError:
        known = [name for name, _ in self.keys_and_values()]
        if "=" in key:
            name, _, value = key.partition("=")
            return ConfigError(f"{source}: {key!r} is not a key: write {name} {value} with a space")
        last = key.rpartition(".")[2].upper()
        near = (
            difflib.get_close_matches(key.upper(), known, n=1, cutoff=0.85)
            or [name for name in known if name.rpartition(".")[2] == last]
            or difflib.get_close_matches(key.upper(), known, n=3, cutoff=0.6)
        )
        hint = f" Did you mean {' or '.join(near[:3])}?" if near else ""
        return ConfigError(f"{source}: no config key {key!r}.{hint}")

    def unread(self, *others: Cfg, ignore: Sequence[str] = ()) -> list[tuple[str, Any, str]]:
        """Keys that somebody set and nothing read.

        Args:
            others: Further configs of the same run. What this config sets counts as read when any of them was asked
                for the key; what another one sets, when a config that has it from the same place was asked: what a
                task file says of the network, which is built from this config, does not count.
            ignore: Keys, or nodes, to leave out.

        Returns:
            ``(key, value, source)`` of each.
        """
        rows: dict[tuple[str, str], tuple[str, Any, str]] = {}
        read: dict[str, set[str]] = {}
        for cfg in (self, *others):
            for key, value, seen in _leaves(cfg):
                source = cfg.source(key)
                if seen:
                    read.setdefault(key, set()).add(source)
                elif source != DEFAULT:
                    rows[key, source] = (key, value, source)
        mine = self.__dict__["_sources"]
        return [
            row
            for (key, source), row in rows.items()
            if source not in read.get(key, ()) and not (key in read and mine.get(key) == source)
            if not is_under(key, ignore)
        ]

    def override(self, values: Mapping[str, object], source: str) -> Cfg:
        """A frozen copy with other values; reads of the copy count for both.

        Raises:
            ConfigError: an unknown key, a wrong type, or a combination that does not fit.
        """
        twin = self.thaw()
        for key, value in values.items():
            twin.assign(key, value, source)
        return twin.finish()

    def finish(self) -> Cfg:
        """Check how the values fit together and freeze; the loader's last step.

        Raises:
            ConfigError: with every problem there is, on one line.
        """
        found = problems(self)
        if len(found) > 1:
            raise ConfigError(
                f"{len(found)} problems: " + "; ".join(f"({i}) {text}" for i, text in enumerate(found, 1))
            )
        if found:
            raise ConfigError(found[0])
        self.freeze()
        return self

    def thaw(self) -> Cfg:
        """A copy that can be assigned to and shares the record of reads; for the loader."""
        twin = Cfg(new_allowed=self.is_new_allowed())
        for key, value in self.items():
            dict.__setitem__(twin, key, value.thaw() if isinstance(value, Cfg) else copy.deepcopy(value))
        state = self.__dict__
        twin.__dict__.update(
            _seen=state["_seen"],
            _sources=dict(state["_sources"]),
            _notes=copy.deepcopy(state["_notes"]),
            _kinds=state["_kinds"],
        )
        return twin

    def dump_with_sources(self) -> str:
        """YAML of every group in which a key was set or read, a comment at each value saying who set it.

        The text loads again to the same values.
        """
        lines = [(text, source) for text, source in _dump(self, self, "", 0)]
        width = min(60, max((len(text) for text, source in lines if source), default=0))
        return "".join(f"{text:<{width}}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def is_under(key: str, prefixes: Sequence[str]) -> bool:
    """Whether a dotted key is one of ``prefixes``, or inside one of them."""
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _leaves(node: Cfg, prefix: str = "", seen: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """(dotted key, value, whether it was read); an entry of a free-form node is read when that node is."""
    for name in node:
        value = node[name]
        if not isinstance(value, Cfg) or node.is_new_allowed():
            yield f"{prefix}{name}", value, seen or name in node.__dict__["_seen"]
        else:
            yield from _leaves(value, f"{prefix}{name}.", name in node.__dict__["_seen"])


def _dump(root: Cfg, node: Cfg, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    """(line, source); groups that nobody set or read are left out."""
    for name in node:
        key, value = f"{prefix}{name}", node[name]
        if isinstance(value, Cfg) and not node.is_new_allowed():
            if any(seen or root.source(leaf) != DEFAULT for leaf, _, seen in _leaves(value, f"{key}.")):
                yield f"{'  ' * depth}{name}:", ""
                yield from _dump(root, value, f"{key}.", depth + 1)
        elif depth == 0 or any(seen or root.source(leaf) != DEFAULT for leaf, _, seen in _leaves(node, prefix)):
            yield f"{'  ' * depth}{_flow(str(name))}: {_flow(value)}", root.source(key)


def _flow(value: object) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(
        _plain(value), default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("...").removesuffix("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
