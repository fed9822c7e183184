# A part of the configuration of a Nomad client whose allocations use portmap.
client {
  enabled        = true
  cni_path       = "/opt/cni/bin:/usr/lib/cni"
  cni_config_dir = "/opt/cni/config"

  # Dynamic ports must lie in the daemon's --ports, here `portmapd --ports 20000-32000`.
  min_dynamic_port = 20000
  max_dynamic_port = 31000

  # Ports 31001 to 32000 of the daemon are for contiguous ranges (PORTMAP_PORTS), which the scheduler does not know.
  # The other range is that of --ephemeral-ports.
  reserved {
    reserved_ports = "31001-32000,61440-65535"
  }
}
