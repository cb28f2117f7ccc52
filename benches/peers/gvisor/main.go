// Every connection into a TUN goes to its original destination: with gVisor's netstack.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Connects to the destination, then answers the client, and copies both ways.
func relay(request *tcp.ForwarderRequest) {
	id := request.ID()
	to := net.TCPAddr{IP: id.LocalAddress.AsSlice(), Port: int(id.LocalPort)}
	server, err := net.DialTCP("tcp", nil, &to)
	if err != nil {
		request.Complete(true)
		return
	}
	var queue waiter.Queue
	endpoint, failed := request.CreateEndpoint(&queue)
	request.Complete(failed != nil)
	if failed != nil {
		server.Close()
		return
	}
	client := gonet.NewTCPConn(&queue, endpoint)
	done := make(chan struct{})
	go func() {
		pass(server, client)
		close(done)
	}()
	pass(client, server)
	<-done
	client.Close()
	server.Close()
}

type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Copies until the end of the stream, and passes that on. After an error both end.
func pass(to, from stream) {
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		from.Close()
	}
	to.CloseWrite()
}

func main() {
	fd, mtu := open(os.Args[1])
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	sack := tcpip.TCPSACKEnabled(true)
	s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	link, err := fdbased.New(&fdbased.Options{FDs: []int{fd}, MTU: mtu, RXChecksumOffload: true})
	if err != nil {
		log.Fatal(err)
	}
	s.CreateNIC(1, link)
	s.SetPromiscuousMode(1, true)
	s.SetSpoofing(1, true)
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: 1},
		{Destination: header.IPv6EmptySubnet, NIC: 1},
	})
	forwarder := tcp.NewForwarder(s, 0, 1024, relay)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.HandlePacket)
	fmt.Println("listening")
	select {}
}
