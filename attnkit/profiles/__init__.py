"""Node types and workloads: small YAML files, checked to the line, built in and from ATTNKIT_PROFILES."""

from attnkit.profiles.files import (
    all_nodes,
    family_names,
    load_node,
    load_workload,
    node_file,
    node_names,
    profile_dir,
    profile_dirs,
    workload_file,
    workload_names,
)
from attnkit.profiles.match import MatchAttempt, NodeMatch, match_node
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

Candidate = MatchAttempt  # its name until 0.1

__all__ = [
    "BackendName",
    "BlockSize",
    "Candidate",
    "Changes",
    "Engine",
    "Match",
    "MatchAttempt",
    "NodeMatch",
    "NodeProfile",
    "Platform",
    "ProfileLevel",
    "Settings",
    "WorkloadProfile",
    "all_nodes",
    "effective",
    "family_names",
    "load_node",
    "load_workload",
    "match_node",
    "node_file",
    "node_names",
    "profile_dir",
    "profile_dirs",
    "schema",
    "workload_file",
    "workload_names",
]
