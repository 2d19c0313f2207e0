"""JSON schemas of the free-form parts of a cluster's configuration.

Ray's schema accepts any provider options, machine settings, labels and resources, and KubeRay's
definitions accept any keys in maps: a misspelt key there would be ignored silently.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def closed(names: str = "", /, **properties: Schema) -> Schema:
    """An object without additional properties: names of any value, and properties with a schema."""
    untyped: dict[str, Schema] = {name: {} for name in names.split()}
    return {"type": "object", "properties": untyped | properties, "additionalProperties": False}


def array(names: str, /, **properties: Schema) -> Schema:
    """An array of such objects."""
    return {"type": "array", "items": closed(names, **properties)}


def keyed(pattern: str, **properties: Schema) -> Schema:
    """An object whose keys match a regular expression in full."""
    return {"type": "object", "propertyNames": {"pattern": f"^({pattern})$"}, **properties}


_PLAIN_LABEL = "[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
# Labels are Ray's, or have no prefix: a misspelt `ray.io/...` is neither.
RAY_LABELS = keyed(
    "ray\\.io/(accelerator-type|availability-region|availability-zone|market-type|node-group"
    f"|tpu-[a-z-]+)|{_PLAIN_LABEL}",
    properties={"ray.io/market-type": {"enum": ["spot", "on-demand"]}},
)

# raysys selects machines by labels, so resources are limited to Ray's.
RAY_RESOURCES = keyed(
    "CPU|GPU|TPU|TPU-[A-Za-z0-9-]+-head|memory|object_store_memory|accelerator_type:[A-Za-z0-9_-]+"
)

_EBS = closed(
    "DeleteOnTermination Iops SnapshotId VolumeSize VolumeType KmsKeyId Throughput Encrypted"
)
# Parameters of EC2's RunInstances except those set by Ray, and Ray's SubnetIds.
_AWS_NODE = closed(
    "ImageId InstanceType KernelId KeyName RamdiskId SecurityGroupIds SecurityGroups SubnetId "
    "SubnetIds UserData EbsOptimized InstanceInitiatedShutdownBehavior PrivateIpAddress "
    "EnablePrimaryIpv6 DisableApiStop DisableApiTermination ElasticInferenceAccelerators "
    "LicenseSpecifications",
    BlockDeviceMappings=array("DeviceName VirtualName NoDevice", Ebs=_EBS),
    CapacityReservationSpecification=closed(
        "CapacityReservationPreference",
        CapacityReservationTarget=closed(
            "CapacityReservationId CapacityReservationResourceGroupArn"
        ),
    ),
    CpuOptions=closed("CoreCount ThreadsPerCore AmdSevSnp"),
    CreditSpecification=closed("CpuCredits"),
    EnclaveOptions=closed("Enabled"),
    HibernationOptions=closed("Configured"),
    IamInstanceProfile=closed("Arn Name"),
    InstanceMarketOptions=closed(
        MarketType={"enum": ["spot", "capacity-block"]},
        SpotOptions=closed(
            "MaxPrice SpotInstanceType BlockDurationMinutes ValidUntil InstanceInterruptionBehavior"
        ),
    ),
    LaunchTemplate=closed("LaunchTemplateId LaunchTemplateName Version"),
    MaintenanceOptions=closed("AutoRecovery"),
    MetadataOptions=closed(
        "HttpTokens HttpPutResponseHopLimit HttpEndpoint HttpProtocolIpv6 InstanceMetadataTags"
    ),
    Monitoring=closed("Enabled"),
    NetworkInterfaces=array(
        "AssociatePublicIpAddress DeleteOnTermination Description DeviceIndex Groups "
        "NetworkInterfaceId PrivateIpAddress SubnetId InterfaceType NetworkCardIndex"
    ),
    Placement=closed(
        "AvailabilityZone Affinity GroupName PartitionNumber HostId Tenancy SpreadDomain "
        "HostResourceGroupArn GroupId"
    ),
    PrivateDnsNameOptions=closed(
        "HostnameType EnableResourceNameDnsARecord EnableResourceNameDnsAAAARecord"
    ),
    TagSpecifications=array("ResourceType", Tags=array("Key Value")),
)

# An instance of Compute Engine's API, except the fields set by Ray or Google.
_GCP_NODE = closed(
    "canIpForward deletionProtection description hostname machineType minCpuPlatform "
    "privateIpv6GoogleAccess resourcePolicies sourceMachineImage sourceInstanceTemplate",
    advancedMachineFeatures=closed(
        "enableNestedVirtualization threadsPerCore visibleCoreCount enableUefiNetworking "
        "performanceMonitoringUnit turboMode"
    ),
    confidentialInstanceConfig=closed("enableConfidentialCompute confidentialInstanceType"),
    disks=array(
        "autoDelete boot deviceName diskEncryptionKey diskSizeGb interface mode source type",
        initializeParams=closed(
            "description diskName diskSizeGb diskType labels onUpdateAction "
            "provisionedIops provisionedThroughput sourceImage sourceSnapshot"
        ),
    ),
    guestAccelerators=array("acceleratorCount acceleratorType"),
    labels=keyed("[a-z][a-z0-9_-]{0,62}"),
    metadata=closed(items=array("key value")),
    networkInterfaces=array(
        "accessConfigs aliasIpRanges kind name network networkIP nicType stackType subnetwork"
    ),
    reservationAffinity=closed("consumeReservationType key values"),
    scheduling=closed(
        "automaticRestart instanceTerminationAction maintenanceFreezeDurationHours maxRunDuration "
        "minNodeCpus nodeAffinities onHostMaintenance preemptible",
        provisioningModel={"enum": ["STANDARD", "SPOT", "RESERVATION_BOUND", "FLEX_START"]},
    ),
    serviceAccounts=array("email scopes"),
    shieldedInstanceConfig=closed("enableIntegrityMonitoring enableSecureBoot enableVtpm"),
    tags=closed("items"),
)

# Options of a provider, and machine settings of its node types.
PROVIDERS: dict[str, tuple[Schema, Schema]] = {
    "aws": (
        closed(
            "type region availability_zone cache_stopped_nodes use_internal_ips "
            "disable_node_updaters",
            security_group=closed("GroupName IpPermissions"),
        ),
        _AWS_NODE,
    ),
    "gcp": (
        closed("type region availability_zone project_id use_internal_ips disable_node_updaters"),
        _GCP_NODE,
    ),
    "local": (closed("type head_ip worker_ips external_head_ip coordinator_address"), closed()),
    "external": (
        closed(
            "type module head_node_id gcs_address launch_multiple use_node_id_as_ip "
            "disable_node_updaters disable_launch_config_check"
        ),
        closed(),
    ),
}

# Maps with arbitrary keys in KubeRay's definitions, by name.
_POD_RESOURCES = keyed(
    "cpu|memory|ephemeral-storage|hugepages-[0-9A-Za-z]+|nvidia\\.com/(gpu|mig-[0-9a-z.]+)"
    "|amd\\.com/gpu|habana\\.ai/gaudi|google\\.com/tpu"
)
_POD_LABELS = keyed(
    "app\\.kubernetes\\.io/(name|instance|version|component|part-of|managed-by)"
    "|ray\\.io/(cluster|node-type|group|is-ray-node|serve|identifier|priority-class-name)"
    "|kueue\\.x-k8s\\.io/(queue-name|priority-class)|azure\\.workload\\.identity/use"
    f"|{_PLAIN_LABEL}"
)
_ANNOTATIONS = keyed(
    "prometheus\\.io/(scrape|port|path|scheme)"
    "|cluster-autoscaler\\.kubernetes\\.io/safe-to-evict|karpenter\\.sh/do-not-disrupt"
    "|ray\\.io/(overwrite-container-cmd|external-storage-namespace)"
    "|service\\.beta\\.kubernetes\\.io/[a-z0-9-]+|sidecar\\.istio\\.io/inject"
)
_NODE_SELECTOR = keyed(
    "kubernetes\\.io/(arch|os|hostname)|node\\.kubernetes\\.io/instance-type"
    "|topology\\.kubernetes\\.io/(zone|region)|node-role\\.kubernetes\\.io/[a-z-]+"
    "|cloud\\.google\\.com/(gke-spot|gke-accelerator|gke-nodepool|gke-tpu-accelerator"
    "|gke-tpu-topology|machine-family|compute-class)"
    "|eks\\.amazonaws\\.com/(capacityType|nodegroup)"
    "|karpenter\\.sh/(capacity-type|nodepool)|karpenter\\.k8s\\.aws/[a-z-]+"
    "|kubernetes\\.azure\\.com/(scalesetpriority|agentpool)|nvidia\\.com/gpu\\.[a-z.]+"
)
MAPS: dict[str, Schema] = {
    **dict.fromkeys(("labels", "matchLabels"), _POD_LABELS),
    **dict.fromkeys(("limits", "requests"), _POD_RESOURCES),
    "annotations": _ANNOTATIONS,
    "nodeSelector": _NODE_SELECTOR,
}
METADATA = closed("name generateName namespace", labels=_POD_LABELS, annotations=_ANNOTATIONS)
POD_MONITOR = {"required": ["apiVersion"]} | closed(
    "kind",
    apiVersion={"const": "monitoring.coreos.com/v1"},
    metadata=METADATA,
    spec=closed(
        "jobLabel podTargetLabels sampleLimit",
        namespaceSelector=closed("any matchNames"),
        selector=closed(matchLabels=_POD_LABELS, matchExpressions=array("key operator values")),
        podMetricsEndpoints=array(
            "port portNumber path scheme interval scrapeTimeout honorLabels metricRelabelings",
            relabelings=array(
                "sourceLabels separator targetLabel regex modulus replacement action"
            ),
        ),
    ),
)
