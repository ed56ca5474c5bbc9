//go:build amd64 && !purego

package bf16

import (
	"sync"
	"syscall"
)

// tilesAllowed asks Linux, once, for the state of tiles (XTILEDATA, 8 KB a
// thread), which a process has to ask for before it uses one. The permission is
// the process's: it holds for threads there are and for those to come. Linux
// refuses it where the alternate signal stack of a thread is too small for a
// frame with tiles (about 11 KB; Go's are 32 KB), before 5.16, and in some
// containers; AMX is then not used.
//
// A signal that arrives during a kernel saves the tiles on that stack, and
// sigreturn restores them. Go does not switch goroutines in assembly.
var tilesAllowed = sync.OnceValue(func() bool {
	const (
		archReqXcompPerm = 0x1023
		xtiledata        = 18
	)
	_, _, e := syscall.RawSyscall(syscall.SYS_ARCH_PRCTL, archReqXcompPerm, xtiledata, 0)
	return e == 0
})
