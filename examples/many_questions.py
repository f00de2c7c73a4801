"""A job over a file of documents, one of them unusable, then questions about the rows that it wrote.

python examples/many_questions.py BUNDLE
"""

import json
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

DATA = resources.files("latentwire.runtime.demo_documents")


def latentwire(*words: str) -> str:
    """Run a command; status 3 says that some rows could not be done, which the job's table tells."""
    command = [sys.executable, "-m", "latentwire.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    return done.stdout


def main(bundle: str, folder: Path) -> None:
    """Compress everything, then ask each row its question."""
    documents = DATA.joinpath("documents.jsonl").read_text("utf-8").splitlines()
    documents.insert(2, json.dumps({"custom_id": "empty", "text": "  "}))
    (folder / "documents.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
    asked = [json.loads(line) for line in DATA.joinpath("questions.jsonl").read_text("utf-8").splitlines()]
    without = "".join(json.dumps({k: q[k] for k in ("custom_id", "question")}) + "\n" for q in asked)
    (folder / "questions.jsonl").write_text(without, encoding="utf-8")

    frames = str(folder / "frames")
    latentwire("compress", str(folder / "documents.jsonl"), "-o", frames, "--bundle", bundle, "--quiet")
    for line in (folder / "frames" / "errors" / "part-00000.jsonl").read_text("utf-8").splitlines():
        print("not compressed:", line)
    words = ["--questions", str(folder / "questions.jsonl"), "--bundle", bundle, "--json", "--quiet"]
    expected = {q["custom_id"]: q["answer"] for q in asked}
    for line in latentwire("generate", frames, *words).splitlines():
        row = json.loads(line)
        print(f"{row['custom_id']}: {row['answer']!r}, expected {expected[row['custom_id']]!r}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        main(sys.argv[1], Path(scratch))
