# A service with a dynamic port of the host, ten adjacent UDP ports, and limits.
job "web" {
  group "g" {
    network {
      mode = "cni/portmap"
      port "http" {}
      cni {
        args = {
          PORTMAP_EGRESS  = "100mbit"
          PORTMAP_INGRESS = "100mbit"
          PORTMAP_PORTS   = "31500-31509"
        }
      }
    }

    service {
      name = "web"
      port = "http"
    }

    task "server" {
      driver = "exec"
      config {
        command = "/usr/bin/busybox"
        args    = ["httpd", "-f", "-p", "${NOMAD_PORT_http}", "-h", "/local"]
      }
    }
  }
}
