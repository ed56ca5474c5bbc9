package cpu

import "golang.org/x/sys/unix"

// granted reports whether the system would map so many bytes. The Go runtime
// ends the program where it would not, so it is asked first.
func granted(bytes int64) bool {
	m, err := unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return false
	}
	return unix.Munmap(m) == nil
}

// wantHugePages asks for transparent huge pages. It is a wish: where they are
// switched off, pages stay small.
func wantHugePages(b []byte) {
	if len(b) > 0 {
		_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	}
}
