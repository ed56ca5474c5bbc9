package roof

import (
	"math"

	"golang.org/x/sys/unix"
)

// allocate maps memory and asks for huge pages: with small ones the walks of
// page tables take a part of what memory can give.
func allocate(n int64) (memory []byte, free func(), err error) {
	if n > math.MaxInt {
		return nil, nil, unix.ENOMEM
	}
	memory, err = unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	_ = unix.Madvise(memory, unix.MADV_HUGEPAGE) // where it is refused, small pages do
	return memory, func() { _ = unix.Munmap(memory) }, nil
}
