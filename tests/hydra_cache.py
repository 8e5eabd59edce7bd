"""Caches for Hydra's compositions, which take most of the time of a short command.

Hydra composes twice per command, reads every file again and copies the result node by node. Private
parts of Hydra are replaced here and nowhere else. Commands in child processes run without it.
"""

import pickle
import re
from functools import lru_cache
from pathlib import Path

import yaml
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

MERGE = "_compose_config_from_defaults_list"


def install(patch, configs):
    """Install the caches with `patch`, a MonkeyPatch, for the files in the folder `configs`."""
    patch.setattr(ConfigRepository, "load_config", _cached_load(ConfigRepository.load_config))
    patch.setattr(ConfigLoaderImpl, MERGE, _cached_merge(getattr(ConfigLoaderImpl, MERGE)))
    patch.setattr(OmegaConf, "load", staticmethod(_cached_yaml(OmegaConf.load, configs)))
    patch.setattr(yaml, "load", _cached_text(yaml.load))
    patch.setattr(yaml, "parse", _cached_events(yaml.parse))
    patch.setattr(defaults_list, "_create_interpolation_map", _interpolation_map)
    patch.setattr(Hydra, "get_mode", _mode)


class _Copies(dict):
    """Values by key; reading returns a copy, because composing writes to it."""

    def get_or_make(self, key, make):
        if key not in self:
            self[key] = pickle.dumps(make())
        return pickle.loads(self[key])


def _file_key(file):
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size


def _cached_load(load_config):
    copies = _Copies()

    def load(self, config_path):
        source = next((source for source in self.sources if source.is_config(config_path)), None)
        if type(source).__name__ != "FileConfigSource":
            return load_config(self, config_path)
        key = _file_key(Path(source.path, source._normalize_file_name(config_path)))

        def load_with_key():
            result = load_config(self, config_path)
            result.key = key
            return result

        return copies.get_or_make(key, load_with_key)

    return load


def _cached_merge(merge):
    copies = _Copies()

    def content(repo, path):
        result = path and repo.load_config(path)
        if not result or result.provider == "hydra":
            return None
        return getattr(result, "key", None) or pickle.dumps(result.config)

    def merge_once(self, defaults, repo):
        key = tuple((repr(default), content(repo, default.config_path)) for default in defaults)
        return copies.get_or_make(key, lambda: merge(self, defaults, repo))

    return merge_once


def _cached_yaml(load_yaml, configs):
    copies = _Copies()

    def load(file):
        if not isinstance(file, Path) or not file.is_relative_to(configs):
            return load_yaml(file)
        return copies.get_or_make(_file_key(file), lambda: load_yaml(file))

    return load


def _cached_text(load):
    """Cache the text of small files that OmegaConf reads, such as the config.yaml of a run."""
    copies = _Copies()

    def load_text(text, Loader):
        if not isinstance(text, str) or len(text) > 20_000 or Loader.__name__ != "OmegaConfLoader":
            return load(text, Loader)
        return copies.get_or_make(text, lambda: load(text, Loader))

    return load_text


def _cached_events(parse):
    @lru_cache(maxsize=1000)
    def events(text, loader):
        return tuple(parse(text, loader))

    def parse_text(text, Loader=yaml.Loader):
        if not isinstance(text, str) or len(text) > 20_000:
            return parse(text, Loader)
        try:
            return events(text, Loader)
        except Exception:
            return parse(text, Loader)  # raises at the same event as without the cache

    return parse_text


def _interpolation_map(
    overrides, elements, self_added, create=defaults_list._create_interpolation_map
):
    """Build the map only for a defaults list that has an interpolation."""
    if any(element.is_interpolation() for element in elements if not element.is_self()):
        return create(overrides, elements, self_added)
    return None


def _mode(self, config_name, overrides, get_mode=Hydra.get_mode):
    """Compose to find hydra.mode only where an override may set it."""
    if any(re.match(r"\W*(hydra\.mode|search)\b", override) for override in overrides):
        return get_mode(self, config_name, overrides)
    return None
