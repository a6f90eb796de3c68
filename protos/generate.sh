#!/usr/bin/env bash
# Makes the stubs from the protos with the oldest supported grpcio-tools: newer
# generators write stubs that refuse older runtimes. Usage: make protos
set -euo pipefail
cd "$(dirname "$0")"
venv=../.venv-protos
if [ ! -x "$venv/bin/protoc-gen-mypy" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install -q "grpcio-tools==1.62.3" "mypy-protobuf==3.6.0" "setuptools<70"
fi
find trimtab \( -name '*_pb2*.py' -o -name '*_pb2*.pyi' \) -delete
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -I . \
  --python_out=. --mypy_out=quiet:. $(find trimtab -name '*.proto' | sort)
PATH="$PWD/$venv/bin:$PATH" "$venv/bin/python" -m grpc_tools.protoc -I . \
  --grpc_python_out=. --mypy_grpc_out=quiet:. $(grep -rl '^service ' trimtab --include='*.proto' | sort)
find trimtab -type d -exec touch {}/__init__.py \;
