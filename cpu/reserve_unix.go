//go:build unix && !aix && !solaris && !illumos

package cpu

import "golang.org/x/sys/unix"

// reserve takes addresses that nothing lies behind.
func reserve(bytes int) ([]byte, error) {
	return unix.Mmap(-1, 0, bytes, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// commit makes the start of what reserve took memory, zeroed where it was not yet.
// The system counts it from here on, and refuses what it cannot give.
func commit(mem []byte) error {
	if len(mem) == 0 {
		return nil
	}
	return unix.Mprotect(mem, unix.PROT_READ|unix.PROT_WRITE)
}

func release(mem []byte) error { return unix.Munmap(mem) }
