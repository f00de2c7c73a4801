"""What each codec costs in bytes, and what the model answers from it.

python examples/codecs.py BUNDLE
"""

import json
import sys
from importlib import resources
from typing import get_args

import latentwire
from latentwire.runtime.choices import CodecName

DATA = resources.files("latentwire.runtime.demo_documents")


def main(bundle: str) -> None:
    """One document through every codec; the last line is the text itself."""
    document = json.loads(DATA.joinpath("documents.jsonl").read_text("utf-8").splitlines()[2])
    question = json.loads(DATA.joinpath("questions.jsonl").read_text("utf-8").splitlines()[2])
    text = document["text"]
    print(f"{document['title']}: {len(text.encode())} bytes. {question['question']} ({question['answer']})")
    with latentwire.Pipeline.open(bundle) as pipe:
        for codec in get_args(CodecName):
            options = latentwire.CompressOptions(codec=codec)
            try:
                frame = pipe.compress([text], options)[0]
            except latentwire.LatentWireError as error:  # an encoder without codes has no fsq
                print(f"{codec:>8}  {error}")
                continue
            answer = pipe.answers([frame], [question["question"]])[0]
            if isinstance(answer, latentwire.LatentWireError):
                raise answer
            print(f"{codec:>8}  {len(frame):6} bytes  {answer.context_positions:4} positions  {answer.text!r}")
        plain = pipe.generate_text([text], [question["question"]])[0]
        print(f"{'no frame':>8}  {len(text.encode()):6} bytes  {plain!r}")


if __name__ == "__main__":
    main(sys.argv[1])
