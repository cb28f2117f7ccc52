package main

import (
	"log"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// The TUN device NAME@NAMESPACE, and its MTU.
func open(device string) (int, uint32) {
	name, namespace, _ := strings.Cut(device, "@")
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	must(err)
	there, err := os.Open("/run/netns/" + namespace)
	must(err)
	must(unix.Setns(int(there.Fd()), unix.CLONE_NEWNET))
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	must(err)
	request, err := unix.NewIfreq(name)
	must(err)
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	must(unix.IoctlIfreq(fd, unix.TUNSETIFF, request))
	any, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	must(err)
	must(unix.IoctlIfreq(any, unix.SIOCGIFMTU, request))
	must(unix.Close(any))
	must(unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
	runtime.UnlockOSThread()
	must(unix.SetNonblock(fd, true))
	return fd, request.Uint32()
}
