package vec

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// guarded returns n bytes, a multiple of the page size, between two pages
// that must not be touched. They live as long as the test.
func guarded(t testing.TB, n int) ([]byte, error) {
	page := os.Getpagesize()
	all, err := unix.Mmap(-1, 0, n+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { unix.Munmap(all) })
	return all[page : page+n : page+n], unix.Mprotect(all[page:page+n], unix.PROT_READ|unix.PROT_WRITE)
}
