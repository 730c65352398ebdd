"""Interrupted training that goes on with the same random numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np


class BackupAndRestore(keras.callbacks.BackupAndRestore):  # type: ignore[misc]
    """``keras.callbacks.BackupAndRestore`` that also restores the seed generators of dropout and noise layers.

    With it, training that was interrupted at any step and is started again by the same program repeats the epoch that
    was interrupted, and has bitwise the same losses as training without interruption. (Keras's own callback saves no
    seed generators: with dropout, the losses differ from there on. Data that ``fit`` shuffles, or that a ``tf.data``
    pipeline draws, must come in the same order: ``shuffle=False``, or ``keras.utils.set_random_seed``.)

    Args:
        backup_dir: a directory, made if missing; removed after training has ended.
        **options: as for Keras's callback.
    """

    def __init__(self, backup_dir: Any, **options: Any) -> None:
        super().__init__(str(backup_dir), **options)
        self._seeds_path = Path(self.backup_dir) / "seeds.json"

    def _generators(self) -> list[Any]:
        return [v for v in self.model.non_trainable_variables if v.path.endswith("seed_generator_state")]

    def _save_model(self) -> None:
        super()._save_model()
        states = [np.asarray(v).tolist() for v in self._generators()]
        new = self._seeds_path.with_suffix(".new")
        new.write_text(json.dumps(states))
        os.replace(new, self._seeds_path)

    def _load_model(self) -> None:
        super()._load_model()
        if not self._seeds_path.exists():
            return
        states, generators = json.loads(self._seeds_path.read_text()), self._generators()
        if len(states) != len(generators):
            raise ValueError(
                f"{self._seeds_path}: {len(states)} seed generators were saved, but the model has {len(generators)}; "
                f"it is another model. Remove {self.backup_dir} to start afresh"
            )
        for variable, state in zip(generators, states, strict=True):
            variable.assign(np.asarray(state, variable.dtype))
