package kerneltest

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// guards tells whether guarded has guard pages.
const guards = true

// guarded returns n bytes whose last abuts a page that must not be touched, as
// must not the page before the first page. A read or write there is a fault.
func guarded(n int) (b []byte, free func(), err error) {
	page := os.Getpagesize()
	inner := (n + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, inner+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("kerneltest: map %d bytes: %w", inner+2*page, err)
	}
	free = func() { unix.Munmap(all) }
	if inner > 0 {
		if err := unix.Mprotect(all[page:page+inner], unix.PROT_READ|unix.PROT_WRITE); err != nil {
			free()
			return nil, nil, fmt.Errorf("kerneltest: protect: %w", err)
		}
	}
	return all[page+inner-n : page+inner : page+inner], free, nil
}
