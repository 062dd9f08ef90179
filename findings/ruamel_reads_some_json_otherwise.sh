#!/usr/bin/env bash
# ruamel.yaml 0.19.1 (YAML 1.2, safe, pure Python): valid JSON is not always read as a JSON parser reads it.
#
# Expected: YAML 1.2 was designed to include JSON, so a YAML 1.2 parser gives the same result as a JSON parser.
# What happens: a character beyond U+FFFF, which JSON escapes as a pair of surrogates, becomes two lone surrogates, a text
# that cannot be encoded as UTF-8. A key with its colon on the next line is refused. A program that accepts both forms
# should therefore try JSON first.
#
# Seen:
#   json:        ['U+1F3B2']
#   ruamel.yaml: ['U+D83C', 'U+DFB2']
#   colon on the next line: json {'seed': [1]} ruamel.yaml ParserError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet ruamel.yaml==0.19.1
"$folder/env/bin/python" - <<'PYTHON'
import json
import sys

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

text = json.dumps({"name": chr(0x1F3B2)})
assert text.isascii()
by_json, by_yaml = (
    [f"U+{ord(letter):X}" for letter in read(text)["name"]] for read in (json.loads, YAML(typ="safe", pure=True).load)
)
print("json:       ", by_json)
print("ruamel.yaml:", by_yaml)
text = '{"seed"\n:\n[1]}'
try:
    refused = repr(YAML(typ="safe", pure=True).load(text))
except YAMLError as error:
    refused = type(error).__name__
print("colon on the next line: json", json.loads(text), "ruamel.yaml", refused)
sys.exit(0 if (by_json, by_yaml, refused) == (["U+1F3B2"], ["U+D83C", "U+DFB2"], "ParserError") else 1)
PYTHON
