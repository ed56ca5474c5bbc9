package tier_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/kvcache/tier/tiertest"
)

func TestHostStore(t *testing.T) {
	tiertest.Run(t, func(t *testing.T) tier.Store {
		h, err := tier.NewHost(tier.Limits{Bytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}, nil)
}

func TestDiskStore(t *testing.T) {
	var dir string
	at := 0
	tiertest.Run(t, func(t *testing.T) tier.Store {
		dir = t.TempDir()
		d, err := tier.OpenDisk(dir, tier.DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}, func(t *testing.T, k page.Key) {
		name := filepath.Join(dir, k.Name()+".page")
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		switch at++; at % 3 {
		case 0:
			b[len(b)-1]++
		case 1:
			b[3]++
		case 2:
			b = b[:len(b)-1]
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	})
}
