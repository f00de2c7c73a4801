"""One process holds a text, another answers questions about it; only a frame travels between them.

python examples/two_processes.py BUNDLE
"""

import json
import multiprocessing
import sys
from importlib import resources
from multiprocessing.connection import Connection

import latentwire


def sender(bundle: str, channel: Connection) -> None:
    """Has the text and loads only the encoder."""
    from latentwire.runtime.pipeline import COMPRESS_PARTS

    data = resources.files("latentwire.runtime.demo_documents").joinpath("documents.jsonl").read_text("utf-8")
    document = json.loads(data.splitlines()[2])
    with latentwire.Pipeline.open(bundle, parts=COMPRESS_PARTS) as pipe:
        frame = pipe.compress([document["text"]], latentwire.CompressOptions(codec="fsq"))[0]
    print(f"sender: {document['title']}, {len(document['text'].encode())} bytes of text, {len(frame)} bytes of frame")
    channel.send_bytes(frame)


def main(bundle: str) -> None:
    """Starts the sender, gets its frame, asks."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=sender, args=(bundle, there))
    process.start()
    there.close()  # so that a sender that dies ends the wait
    try:
        frame = here.recv_bytes()
    except EOFError:
        sys.exit("the sender ended without a frame")
    process.join()
    with latentwire.Pipeline.open(bundle) as pipe:
        print("reader: From which language does the word darshana derive? (Sanskrit)")
        for piece in pipe.stream(frame, "From which language does the word darshana derive?"):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main(sys.argv[1])
