package tier_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/longctx/longctx/kvcache/page"
	"github.com/longctx/longctx/kvcache/tier"
	"github.com/longctx/longctx/tensor"
)

// pages are n pages of 1 MiB: 16 tokens of 16 layers of 8 heads of 128, F16.
func pages(b *testing.B, n int) (keys []page.Key, blobs [][]byte) {
	b.Helper()
	h := page.Header{Tokens: 16, Layout: page.Layout{Layers: 16, PageSize: 16, KVHeads: 8, HeadDim: 128, ValueDim: 128, DType: tensor.F16}}
	for i := range n {
		h.Key.Hash[0] = byte(i)
		blob, payload, err := page.Begin(nil, &h)
		if err != nil {
			b.Fatal(err)
		}
		for j := range payload {
			payload[j] = byte(i + j*j)
		}
		page.Seal(blob)
		keys, blobs = append(keys, h.Key), append(blobs, blob)
	}
	return keys, blobs
}

const benchPages = 32

// BenchmarkStores puts and gets pages of 1 MiB; raw is a copy in memory, and a
// file written, synced and read again without a Store.
func BenchmarkStores(b *testing.B) {
	ctx := context.Background()
	keys, blobs := pages(b, benchPages)
	each := func(name string, f func(i int) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(blobs[0])))
			for i := 0; b.Loop(); i++ {
				if err := f(i % benchPages); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	dst := make([]byte, 0, len(blobs[0]))
	each("raw/memory", func(i int) error { dst = append(dst[:0], blobs[i]...); return nil })
	host, err := tier.NewHost(tier.Limits{Bytes: 16 << 20}) // half of the pages: each Put lets one go
	if err != nil {
		b.Fatal(err)
	}
	each("host/put", func(i int) error { return host.Put(ctx, keys[i], blobs[i]) })
	host, _ = tier.NewHost(tier.Limits{Bytes: 64 << 20})
	for i := range keys {
		_ = host.Put(ctx, keys[i], blobs[i])
	}
	each("host/get", func(i int) (err error) { dst, err = host.Get(ctx, keys[i], dst[:0]); return err })

	dir := b.TempDir()
	raw := func(i int) string { return filepath.Join(dir, fmt.Sprint("raw", i)) }
	each("raw/disk/write", func(i int) error {
		f, err := os.Create(raw(i))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(blobs[i]); err != nil {
			return err
		}
		return f.Sync()
	})
	each("raw/disk/read", func(i int) error { _, err := os.ReadFile(raw(0)); return err })
	for _, noSync := range []bool{false, true} {
		d, err := tier.OpenDisk(b.TempDir(), tier.DiskOptions{NoSync: noSync, Limits: tier.Limits{Bytes: 16 << 20}})
		if err != nil {
			b.Fatal(err)
		}
		each(fmt.Sprintf("disk/put/nosync=%v", noSync), func(i int) error { return d.Put(ctx, keys[i], blobs[i]) })
		if err := d.Put(ctx, keys[0], blobs[0]); err != nil {
			b.Fatal(err)
		}
		each(fmt.Sprintf("disk/get/nosync=%v", noSync), func(int) (err error) { dst, err = d.Get(ctx, keys[0], dst[:0]); return err })
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
