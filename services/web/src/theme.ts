import { kept, Store } from './store'

export type Theme = 'system' | 'light' | 'dark'
export const THEMES: Theme[] = ['system', 'light', 'dark']

const chosen = kept.read('local', 'theme')
export const theme = new Store<Theme>(chosen === 'light' || chosen === 'dark' ? chosen : 'system')

function apply(): void {
  document.documentElement.dataset.theme = theme.get()
}
apply()
theme.subscribe(apply)

export function choose(wanted: Theme): void {
  kept.write('local', 'theme', wanted)
  theme.set(wanted)
}
