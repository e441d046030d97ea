"""Whether an object is what Kubernetes, or Dask's operator, says it is; unknown keys are refused."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

VERSION = "1.32"
DASK = "kubernetes.dask.org/v1"
#: Fields whose keys the user chooses.
OPEN = {"labels", "annotations", "nodeSelector", "matchLabels", "limits", "requests", "selector", "data"}


def faults_of(made):
    """Return what the schema of the kind of an object finds wrong."""
    found = []
    if made["apiVersion"] == DASK:
        found = [error.message for error in jsonschema.Draft7Validator(_definition(made["kind"])).iter_errors(made)]
    else:
        try:
            kubernetes_validate.validate(made, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(error.message)
    return [f"{made['kind']}: {message}" for message in found]


@cache
def _definition(kind):
    folder = next((Path(find_spec("dask_kubernetes").origin).parent / "operator" / "deployment" / "helm").rglob("crds"))
    definition = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text())
    schema = _strict(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {}}
    return schema


def _strict(schema, name=""):
    """Return a schema that refuses unknown keys, as the API would prune them without a word."""
    schema = {key: value for key, value in schema.items() if key != "x-kubernetes-preserve-unknown-fields"}
    if "properties" in schema:
        schema["properties"] = {key: _strict(value, key) for key, value in schema["properties"].items()}
        if name not in OPEN:
            schema.setdefault("additionalProperties", False)
    if isinstance(schema.get("items"), dict):
        schema["items"] = _strict(schema["items"])
    return schema
