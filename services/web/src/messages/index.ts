import { kept, Store, useStore } from '../store'
import { en, type Messages } from './en'
import { ptBR } from './pt-BR'

export type { Messages }
export type Language = 'pt-BR' | 'en'

export const LANGUAGES: Record<Language, { name: string; messages: Messages }> = {
  'pt-BR': { name: 'Português', messages: ptBR },
  en: { name: 'English', messages: en },
}

const isLanguage = (text: string | null): text is Language => text !== null && text in LANGUAGES

/** The language that was chosen here, else the first of the browser's that there is. */
function preferred(): Language {
  const chosen = kept.read('local', 'language')
  if (isLanguage(chosen)) return chosen
  for (const wanted of navigator.languages ?? []) {
    if (/^pt\b/i.test(wanted)) return 'pt-BR'
    if (/^en\b/i.test(wanted)) return 'en'
  }
  return 'en'
}

export const language = new Store<Language>(preferred())

export function choose(chosen: Language): void {
  kept.write('local', 'language', chosen)
  language.set(chosen)
}

export function useMessages(): Messages {
  return LANGUAGES[useStore(language)].messages
}
