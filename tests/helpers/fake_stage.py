"""A stage that takes no time and fails on request: python -m fake_stage --config FILE.json.

``run.wandb`` of its config says what it does: a number is how often it fails before it works,
"stay" that it works until it is asked to stop. ``run.dir`` has its diary.
"""

import json
import signal
import sys
import time
from pathlib import Path


def stop(folder):
    """Saved, as a stage ends."""
    with (folder / "diary").open("a") as diary:
        diary.write("saved\n")
    sys.exit(0)


def main():
    run = json.loads(Path(sys.argv[2]).read_text())["config"]["run"]
    folder, task = Path(run["dir"]), run["wandb"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "diary").open("a") as diary:
        diary.write("started\n")
    starts = (folder / "diary").read_text().count("started")
    if task == "stay" and starts == 1:
        signal.signal(signal.SIGTERM, lambda *_: stop(folder))
        (folder / "ready").touch()
        time.sleep(60)
    if task.isdecimal() and starts <= int(task):
        print(f"first line\nbroken for the {starts}. time\n", flush=True)
        sys.exit(3)
    (folder / "DONE").write_text(json.dumps({"seconds": 1.0}))


if __name__ == "__main__":
    main()
