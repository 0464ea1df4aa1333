#!/usr/bin/env bash
# transformers 5.24.0, T5Tokenizer.from_pretrained and CLIPTokenizer.from_pretrained, a folder that
# has tokenizer_config.json and lacks the vocabulary (spiece.model; vocab.json and merges.txt): a
# download that stopped, or a copy without its large files. transformers 4 raised OSError.
#
# Seen: no error and no warning. The tokenizer has its special tokens alone (T5 also a space): every
# word of a prompt becomes the same "unknown".
# It hurts: a text-to-image pipeline draws, and its pictures have nothing to do with the prompts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" sentencepiece
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import json
import logging
import pathlib
import sys

import transformers

records = []
handler = logging.Handler()
handler.emit = lambda record: records.append(record.getMessage())
transformers.utils.logging.get_logger("transformers").addHandler(handler)

print("transformers", transformers.__version__)
as_seen = True
for kind in (transformers.T5Tokenizer, transformers.CLIPTokenizer):
    folder = pathlib.Path(kind.__name__)
    folder.mkdir()
    said = {"tokenizer_class": kind.__name__, "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        print(kind.__name__, "raises", type(error).__name__)
        as_seen = False
        continue
    first, second = (set(tokenizer(text).input_ids) for text in ("a cat", "two red cars, rain"))
    print(kind.__name__, "tokens:", tokenizer.vocab_size)
    print("  ids of two prompts:", sorted(first), sorted(second), "warnings:", len(records))
    as_seen &= first == second and not records
sys.exit(0 if as_seen else 1)
PYTHON
