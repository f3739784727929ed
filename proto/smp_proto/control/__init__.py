"""The messages of the control socket: what smpctl asks and what smpd answers.

Requests are a closed tagged union; events are an open record, so that an older client passes over kinds it
does not know. Bodies are msgpack maps; new fields always have defaults. Sizes are bytes, times are seconds
since the epoch (UTC) unless a name says otherwise.
"""

from smp_proto.control.base import Hello, Request, Role
from smp_proto.control.box import (
    AuditLines,
    AuditProof,
    AuditRead,
    AuditRenew,
    AuditRenewed,
    Check,
    Doctor,
    DoctorRequest,
    ProcessorInfo,
    Processors,
    ProcessorsRequest,
    RemoteHealth,
    RemoteLoad,
    Status,
    StatusRequest,
    Worker,
)
from smp_proto.control.jobs import (
    FINAL_STATES,
    UNFINISHED_STATES,
    AnyJobSpec,
    Event,
    GetSpec,
    JobControl,
    JobRequest,
    Jobs,
    JobSpec,
    JobsRequest,
    JobStage,
    JobState,
    JobView,
    Priority,
    PutFile,
    PutSpec,
    Result,
    RunSpec,
    Sealing,
    Submit,
    Transfer,
    Watch,
)
from smp_proto.control.metrics import MetricFamily, MetricSample, MetricsRequest
from smp_proto.control.notices import NotifyTest, NotifyTested, NotifyTried
from smp_proto.control.quarantine import (
    QUARANTINE_PAGE,
    Quarantine,
    QuarantineChange,
    QuarantineItem,
    QuarantineList,
    QuarantineRemove,
    QuarantineRetry,
    QuarantineShow,
)
from smp_proto.control.remotes import (
    SIZE_MAX,
    AnyRemoteConfig,
    AnyRemoteSecret,
    ListObjects,
    LocalConfig,
    Mode,
    ObjectInfo,
    Objects,
    RemoteAdd,
    RemoteConfig,
    RemoteList,
    RemoteRemove,
    Remotes,
    RemoteSecret,
    RemoteTest,
    RemoteTested,
    RemoteView,
    RemoveObject,
    S3Config,
    S3Secret,
    SftpConfig,
    SftpSecret,
)
from smp_proto.control.service import LimitView, Reload, Reloaded
from smp_proto.control.syncs import (
    SYNC_BYTES_MAX,
    TROUBLES_MAX,
    SyncAdd,
    SyncChanged,
    SyncControl,
    SyncList,
    Syncs,
    SyncShow,
    SyncShown,
    SyncSpec,
    SyncState,
    SyncTrouble,
    SyncView,
)
from smp_proto.control.trust import BoxKey, BoxRotate, PublicKey, TrustAdd, Trusted, TrustList, TrustRemove, TrustView
from smp_proto.control.vault import (
    VAULT_PAGE,
    Entries,
    EntryView,
    OpenInto,
    Vault,
    VaultEntries,
    VaultItem,
    VaultList,
    VaultOpen,
    VaultRemove,
)

AnyRequest = (
    StatusRequest
    | DoctorRequest
    | Submit
    | JobsRequest
    | JobRequest
    | JobControl
    | Watch
    | RemoteAdd
    | RemoteList
    | RemoteTest
    | RemoteRemove
    | ListObjects
    | RemoveObject
    | VaultList
    | VaultEntries
    | VaultOpen
    | VaultRemove
    | QuarantineList
    | QuarantineShow
    | QuarantineRetry
    | QuarantineRemove
    | ProcessorsRequest
    | TrustAdd
    | TrustList
    | TrustRemove
    | BoxKey
    | BoxRotate
    | AuditRead
    | AuditRenew
    | Reload
    | NotifyTest
    | SyncAdd
    | SyncList
    | SyncShow
    | SyncControl
    | MetricsRequest
)

__all__ = [
    "FINAL_STATES",
    "QUARANTINE_PAGE",
    "SIZE_MAX",
    "SYNC_BYTES_MAX",
    "TROUBLES_MAX",
    "UNFINISHED_STATES",
    "VAULT_PAGE",
    "AnyJobSpec",
    "AnyRemoteConfig",
    "AnyRemoteSecret",
    "AnyRequest",
    "AuditLines",
    "AuditProof",
    "AuditRead",
    "AuditRenew",
    "AuditRenewed",
    "BoxKey",
    "BoxRotate",
    "Check",
    "Doctor",
    "DoctorRequest",
    "Entries",
    "EntryView",
    "Event",
    "GetSpec",
    "Hello",
    "JobControl",
    "JobRequest",
    "JobSpec",
    "JobStage",
    "JobState",
    "JobView",
    "Jobs",
    "JobsRequest",
    "LimitView",
    "ListObjects",
    "LocalConfig",
    "MetricFamily",
    "MetricSample",
    "MetricsRequest",
    "Mode",
    "NotifyTest",
    "NotifyTested",
    "NotifyTried",
    "ObjectInfo",
    "Objects",
    "OpenInto",
    "Priority",
    "ProcessorInfo",
    "Processors",
    "ProcessorsRequest",
    "PublicKey",
    "PutFile",
    "PutSpec",
    "Quarantine",
    "QuarantineChange",
    "QuarantineItem",
    "QuarantineList",
    "QuarantineRemove",
    "QuarantineRetry",
    "QuarantineShow",
    "Reload",
    "Reloaded",
    "RemoteAdd",
    "RemoteConfig",
    "RemoteHealth",
    "RemoteList",
    "RemoteLoad",
    "RemoteRemove",
    "RemoteSecret",
    "RemoteTest",
    "RemoteTested",
    "RemoteView",
    "Remotes",
    "RemoveObject",
    "Request",
    "Result",
    "Role",
    "RunSpec",
    "S3Config",
    "S3Secret",
    "Sealing",
    "SftpConfig",
    "SftpSecret",
    "Status",
    "StatusRequest",
    "Submit",
    "SyncAdd",
    "SyncChanged",
    "SyncControl",
    "SyncList",
    "SyncShow",
    "SyncShown",
    "SyncSpec",
    "SyncState",
    "SyncTrouble",
    "SyncView",
    "Syncs",
    "Transfer",
    "TrustAdd",
    "TrustList",
    "TrustRemove",
    "TrustView",
    "Trusted",
    "Vault",
    "VaultEntries",
    "VaultItem",
    "VaultList",
    "VaultOpen",
    "VaultRemove",
    "Watch",
    "Worker",
]
