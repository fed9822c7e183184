//! TCP sockets and their measurements.

use std::net::SocketAddr;

/// State of a TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcpState {
    /// Connected.
    Established,
    /// It has sent a connection request.
    SynSent,
    /// It has received a connection request.
    SynReceived,
    /// It has closed its side; the acknowledgement is missing.
    FinWait1,
    /// It has closed its side, which the peer has acknowledged.
    FinWait2,
    /// Closed by both sides; late packets are still expected. No process holds the socket.
    TimeWait,
    /// Neither bound nor connected.
    Close,
    /// The peer has closed its side.
    CloseWait,
    /// Both sides have closed; the last acknowledgement is missing.
    LastAck,
    /// It accepts connections.
    Listen,
    /// Both sides have closed at the same time.
    Closing,
}

impl TcpState {
    /// All states, in the order of the kernel's numbers, of which the first is 1.
    pub const ALL: [Self; 11] = [
        Self::Established,
        Self::SynSent,
        Self::SynReceived,
        Self::FinWait1,
        Self::FinWait2,
        Self::TimeWait,
        Self::Close,
        Self::CloseWait,
        Self::LastAck,
        Self::Listen,
        Self::Closing,
    ];

    /// The name as `ss` prints it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTAB",
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECV",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::TimeWait => "TIME-WAIT",
            Self::Close => "UNCONN",
            Self::CloseWait => "CLOSE-WAIT",
            Self::LastAck => "LAST-ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
        }
    }
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Its own address and port. IPv4 connections of IPv6 sockets have IPv4 addresses.
    pub local: SocketAddr,
    /// The peer's address and port; unspecified for a listening socket.
    pub remote: SocketAddr,
    /// Its state.
    pub state: TcpState,
    /// The user that created it.
    pub uid: u32,
    /// Its inode number, which identifies it; 0 if no process holds it any more.
    pub inode: u32,
    /// Bytes received that the process has not read; of a listening socket, connections not yet accepted.
    pub receive_queue: u32,
    /// Bytes sent or waiting that the peer has not acknowledged; of a listening socket, its backlog.
    pub send_queue: u32,
    /// Its measurements, if they were requested and the kernel has them: not in `TIME_WAIT`.
    pub info: Option<TcpInfo>,
}

/// Measurements of a TCP socket since it was created. Those that an older kernel lacks are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time in microseconds; 0 before the first measurement.
    pub rtt: u32,
    /// Mean deviation of the round-trip time in microseconds.
    pub rtt_variance: u32,
    /// Lowest round-trip time of the last minutes in microseconds.
    pub min_rtt: u32,
    /// Congestion window in segments.
    pub congestion_window: u32,
    /// Segments that are sent and presumed lost.
    pub lost: u32,
    /// Segments retransmitted.
    pub retransmits: u32,
    /// Segments sent, including retransmitted ones.
    pub segments_sent: u32,
    /// Segments received.
    pub segments_received: u32,
    /// Bytes of data sent, including retransmitted ones.
    pub bytes_sent: u64,
    /// Bytes of data retransmitted.
    pub bytes_retransmitted: u64,
    /// Bytes of data that the peer has acknowledged.
    pub bytes_acknowledged: u64,
    /// Bytes of data received.
    pub bytes_received: u64,
    /// Latest rate at which data arrived at the peer, in bytes per second.
    pub delivery_rate: u64,
}
