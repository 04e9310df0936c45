"""Node types and workloads: small YAML files, checked to the line."""

from attnkit.profiles.files import all_nodes, load_node, load_workload, node_names, profile_dir, workload_names
from attnkit.profiles.match import Candidate, NodeMatch, match_node
from attnkit.profiles.schema import (
    BackendName,
    BlockSize,
    Changes,
    Engine,
    Match,
    NodeProfile,
    Platform,
    ProfileLevel,
    WorkloadProfile,
    schema,
)
from attnkit.profiles.settings import Settings, effective

__all__ = [
    "BackendName",
    "BlockSize",
    "Candidate",
    "Changes",
    "Engine",
    "Match",
    "NodeMatch",
    "NodeProfile",
    "Platform",
    "ProfileLevel",
    "Settings",
    "WorkloadProfile",
    "all_nodes",
    "effective",
    "load_node",
    "load_workload",
    "match_node",
    "node_names",
    "profile_dir",
    "schema",
    "workload_names",
]
