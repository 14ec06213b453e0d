"""The figures of a run as TensorBoard reads them."""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from experiments.train.history import Record


class Events:
    """A file of TensorBoard events, written by this thread.

    TensorBoard's own writer has a thread, which shows a traceback when its file is gone or the disk is full.

    Args:
        folder: where the file is made.
    """

    def __init__(self, folder: Path) -> None:
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.0"
        self.path = folder / name
        self.records = self.size = 0

    def update(self, history: list[Record]) -> None:
        """Append the epochs that are not in the file yet; all of them, if somebody removed it.

        Raises:
            OSError: it cannot be written. What was written of it is overwritten by the next call.
        """
        if not self.path.is_file():
            self.records = self.size = 0
            self.path.parent.mkdir(exist_ok=True)
        text = io.BytesIO()
        writer = RecordWriter(text)
        if not self.size:
            writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for record in history[self.records :]:
            for name, value in record.items():
                if name != "epoch":
                    part, _, rest = name.partition("_")
                    summary = scalar(f"{rest}/{part}" if part in ("train", "validation") else name, value)
                    event = Event(wall_time=time.time(), step=int(record["epoch"]), summary=summary)
                    writer.write(event.SerializeToString())
        # A reader has the file open and looks for what is new at its end.
        with self.path.open("r+b" if self.size else "wb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(text.getvalue())
        self.records, self.size = len(history), self.size + len(text.getvalue())
