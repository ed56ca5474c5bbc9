package cpu

import "syscall"

// granted reports whether the system would map so many bytes. The Go runtime
// ends the program where it would not, so it is asked first.
func granted(bytes int64) bool {
	m, err := syscall.Mmap(-1, 0, int(bytes), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return false
	}
	return syscall.Munmap(m) == nil
}
